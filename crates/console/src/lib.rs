//! The API of a running member on its local socket, and its client.
//!
//! Owns the form of requests and answers: one JSON object a line each way, over a Unix socket in the member's data
//! directory that only its owner may open. The command line uses nothing else. Must never decide anything: a request is
//! handed to the daemon, which answers it.
//!
//! | side | line |
//! | --- | --- |
//! | request | `{"call": NAME, "with": {...}}`, at most 1 MiB |
//! | answer | `{"done": ...}` or `{"error": {"code": 1 to 4, "error": ..., "cause": ..., "hint": ...}}` |

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// How long a client waits for a daemon that was just started.
pub const START_LIMIT: Duration = Duration::from_millis(1500);
/// The longest request.
pub const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// What is asked for.
    pub call: String,
    /// Its particulars.
    #[serde(default)]
    pub with: Value,
}

/// Why a request was not done: object, cause and next step.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// The exit code of the command: 1 the answer is no, 2 usage or configuration, 3 operation failed, 4 bug.
    pub code: u8,
    /// What could not be done.
    pub error: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    /// Usage or configuration.
    pub fn usage(error: impl Into<String>) -> Self {
        Self { code: 2, error: error.into(), cause: None, hint: None }
    }

    /// An operation that failed.
    pub fn failed(error: impl Into<String>) -> Self {
        Self { code: 3, error: error.into(), cause: None, hint: None }
    }

    /// With its cause.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// With the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Done(Value),
    Error(Failure),
}

/// Binds the socket. Whatever lies at the path is replaced: the caller has made sure that no other daemon runs.
///
/// # Errors
/// Where the socket cannot be made.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers requests until the future is dropped; each connection carries one.
pub async fn serve<H, R>(listener: UnixListener, handler: H)
where
    H: Fn(Request) -> R + Clone + Send + 'static,
    R: Future<Output = Result<Value, Failure>> + Send,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, handler).await {
                        tracing::debug!(%error, "a client of the local socket went away");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the local socket");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn answer<H, R>(stream: UnixStream, handler: H) -> io::Result<()>
where
    H: Fn(Request) -> R,
    R: Future<Output = Result<Value, Failure>>,
{
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(REQUEST_BYTES_MAX));
    reader.read_line(&mut line).await?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => tokio::select! {
            done = handler(request) => match done {
                Ok(value) => Answer::Done(value),
                Err(failure) => Answer::Error(failure),
            },
            // The client went away: nobody waits for the answer.
            _ = reader.read_u8() => return Ok(()),
        },
        Err(error) => Answer::Error(Failure::usage("the request cannot be read").because(error.to_string())),
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await
}

/// Asks a running member.
///
/// # Errors
/// The member's own [`Failure`], or one that says that no member answers.
pub async fn ask(path: &Path, call: &str, with: Value) -> Result<Value, Failure> {
    let gone = |error: io::Error| {
        Failure::failed(format!("no member answers at {}", path.display()))
            .because(error.to_string())
            .hint("start it with `anabranch serve`, or name its data directory with --data")
    };
    let denied = |error: io::Error| {
        Failure::failed(format!("this user may not open {}, where the member answers", path.display()))
            .because(error.to_string())
            .hint("run the command as the user that runs the daemon, or as root")
    };
    // A daemon that was just started needs a moment until it answers.
    let until = tokio::time::Instant::now() + START_LIMIT;
    let stream = loop {
        match UnixStream::connect(path).await {
            Ok(stream) => break stream,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(denied(error)),
            Err(error) if tokio::time::Instant::now() >= until => return Err(gone(error)),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let (read, mut write) = stream.into_split();
    let request = Request { call: call.into(), with };
    let mut text = serde_json::to_string(&request).map_err(|e| Failure::failed(e.to_string()))?;
    text.push('\n');
    write.write_all(text.as_bytes()).await.map_err(gone)?;
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await.map_err(gone)?;
    match serde_json::from_str::<Answer>(&line) {
        Ok(Answer::Done(value)) => Ok(value),
        Ok(Answer::Error(failure)) => Err(failure),
        Err(error) => Err(Failure::failed("the member ended while it answered").because(error.to_string())),
    }
}
