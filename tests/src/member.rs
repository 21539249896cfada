//! One member: a real `anabranch serve` with its own state, root and port, and its command line.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::program::{self, Ran};
use crate::skip;
use crate::until::{Look, until};

/// How long a command may take that only asks or records.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// How long a member may take until it answers.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// As whom a member runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum User {
    /// As the tests themselves.
    Same,
    /// As the user and group of this number: needs root and `setpriv`.
    Number(u32),
}

/// A member on this machine.
pub struct Member {
    /// Its name in the domain.
    pub name: String,
    /// Everything of it lies here; this is also the root that it allows.
    pub home: PathBuf,
    /// Its loopback port.
    pub port: u16,
    user: User,
    program: PathBuf,
    boot_id: Option<PathBuf>,
    process: Option<Child>,
}

impl Member {
    /// Makes the directories of a member that is not initialised yet.
    ///
    /// # Errors
    /// When the directories cannot be made, no port is free, or there is no program.
    pub fn prepare(dir: &Path, name: &str, user: User) -> Result<Self> {
        let home = dir.join(name);
        for part in ["data", "tree"] {
            fs::create_dir_all(home.join(part)).with_context(|| format!("make {}", home.display()))?;
        }
        let mut program = program::anabranch()?;
        if let User::Number(number) = user {
            // Neither the build's folder nor ours need be open to that user.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).context("open the test's folder")?;
            let copy = dir.join("anabranch");
            if !copy.exists() {
                fs::copy(&program, &copy).context("copy the program")?;
            }
            program = copy;
            for part in ["", "data", "tree"] {
                std::os::unix::fs::chown(home.join(part), Some(number), Some(number)).context("give away a folder")?;
            }
        }
        Ok(Self { name: name.to_owned(), home, port: free_port()?, user, program, boot_id: None, process: None })
    }

    /// The root of its copy of the folder.
    #[must_use]
    pub fn tree(&self) -> PathBuf {
        self.home.join("tree")
    }

    /// Where it keeps its local state.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A command of the program with this member's state, as its user.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.user {
            User::Same => Command::new(&self.program),
            User::Number(number) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={number}"), format!("--regid={number}")]);
                command.arg("--clear-groups").arg("--").arg(&self.program).env("HOME", &self.home);
                command
            }
        };
        command.args(arguments).env("ANABRANCH_DATA", self.data()).current_dir(&self.home);
        command
    }

    /// Runs a command to its end, whatever it answers.
    ///
    /// # Errors
    /// When it does not start or does not end within a minute.
    pub fn ask(&self, arguments: &[&str]) -> Result<Ran> {
        program::run(&mut self.command(arguments), COMMAND_LIMIT)
    }

    /// Runs a command that must succeed; gives what it printed.
    ///
    /// # Errors
    /// When its exit code is not 0.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.ask(arguments)?.done()
    }

    /// Makes it the first member of a domain.
    ///
    /// # Errors
    /// When `init` fails.
    pub fn init(&self) -> Result<()> {
        let (address, root) = (self.address(), self.home.display().to_string());
        self.run(&["init", "--name", &self.name, "--listen", &address, "--root", &root]).map(drop)
    }

    /// Tries to join a domain with an invitation.
    ///
    /// # Errors
    /// When the command does not run.
    pub fn ask_to_join(&self, invitation: &str) -> Result<Ran> {
        let (address, root) = (self.address(), self.home.display().to_string());
        self.ask(&["join", invitation, "--name", &self.name, "--listen", &address, "--root", &root])
    }

    /// Makes an invitation for a member of that name.
    ///
    /// # Errors
    /// When `invite` fails, or prints anything but one word.
    pub fn invite(&self, name: &str) -> Result<String> {
        let invitation = self.run(&["invite", "--name", name])?;
        ensure!(!invitation.is_empty() && !invitation.contains(char::is_whitespace), "not one word: {invitation:?}");
        Ok(invitation)
    }

    /// From the next start on the daemon sees another boot id, as after a power cut: the text of that file. Needs root.
    pub fn boot_anew(&mut self, boot_id: PathBuf) {
        self.boot_id = Some(boot_id);
    }

    fn serve_command(&self) -> Command {
        let Some(boot_id) = &self.boot_id else { return self.command(&["serve"]) };
        // In a mount namespace of its own, so that nothing else on this machine sees it.
        let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", script]).arg(boot_id).arg(&self.program).arg("serve");
        command.env("ANABRANCH_DATA", self.data()).current_dir(&self.home);
        command
    }

    /// Starts the daemon without waiting until it answers.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{} runs already", self.name);
        let log = self.log_file()?;
        let mut command = self.serve_command();
        command.stdin(Stdio::null()).stdout(log.try_clone().context("share a log")?).stderr(log);
        self.process = Some(command.spawn().with_context(|| format!("start {}", self.name))?);
        Ok(())
    }

    /// Waits until the daemon answers.
    ///
    /// # Errors
    /// When it ends, or does not answer within a minute.
    pub fn ready(&mut self) -> Result<()> {
        until(&format!("{} to answer", self.name), READY_LIMIT, || {
            self.expect_running()?;
            let status = self.ask(&["status"])?;
            Ok(Look::when(status.code == 0, || status.to_string()))
        })
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// As [`Self::start`] and [`Self::ready`].
    pub fn serve(&mut self) -> Result<()> {
        self.start()?;
        self.ready()
    }

    /// Whether the daemon was started and not stopped by us.
    #[must_use]
    pub fn started(&self) -> bool {
        self.process.is_some()
    }

    /// Its process id.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// # Errors
    /// When the daemon ended by itself: with the end of its log.
    pub fn expect_running(&mut self) -> Result<()> {
        let Some(child) = &mut self.process else { bail!("{} was not started", self.name) };
        if let Some(status) = child.try_wait().context("ask for the state of a daemon")? {
            bail!("{} ended by itself ({status}); its log ends with:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// `kill -9`: no chance to tidy up.
    ///
    /// # Errors
    /// When the process cannot be ended.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.process.take() {
            child.kill().with_context(|| format!("kill {}", self.name))?;
            child.wait().with_context(|| format!("wait for {}", self.name))?;
        }
        Ok(())
    }

    /// Asks the daemon to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not end within half a minute, or not with exit code 0.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.process.take() else { return Ok(()) };
        signal(&child, Signal::TERM)?;
        let status = until(&format!("{} to end", self.name), Duration::from_secs(30), || {
            let status = child.try_wait().context("ask for the state of a daemon")?;
            Ok(status.map_or(Look::NotYet("it is running".to_owned()), Look::Yes))
        })?;
        ensure!(status.code() == Some(0), "{} ended with {status}:\n{}", self.name, self.log_tail());
        Ok(())
    }

    /// Stops the process where it stands, as a hung machine would.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> Result<()> {
        let child = self.process.as_ref().with_context(|| format!("{} was not started", self.name))?;
        signal(child, Signal::STOP)
    }

    /// Lets a frozen process go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self) -> Result<()> {
        let child = self.process.as_ref().with_context(|| format!("{} was not started", self.name))?;
        signal(child, Signal::CONT)
    }

    /// A listing with `--json`: its items, whether they come as one array or one a line.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn listing(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut words = arguments.to_vec();
        words.push("--json");
        let out = self.run(&words)?;
        if out.is_empty() {
            return Ok(Vec::new());
        }
        if let Ok(Value::Array(items)) = serde_json::from_str(&out) {
            return Ok(items);
        }
        out.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
    }

    /// Events of one number (`number` in the JSON).
    ///
    /// # Errors
    /// As [`Self::listing`].
    pub fn events(&self, number: u64) -> Result<Vec<Value>> {
        let all = self.listing(&["events"])?;
        Ok(all.into_iter().filter(|event| event["number"].as_u64() == Some(number)).collect())
    }

    /// Waits for an event, of any number, whose JSON has all the words (in any case).
    ///
    /// # Errors
    /// When none comes within a minute.
    pub fn event_with(&self, words: &[&str]) -> Result<Value> {
        until(&format!("an event of {} with {words:?}", self.name), Duration::from_secs(60), || {
            let events = self.listing(&["events"])?;
            let has_all = |event: &&Value| {
                let text = event.to_string().to_lowercase();
                words.iter().all(|word| text.contains(&word.to_lowercase()))
            };
            let count = events.len();
            let found = events.iter().find(has_all).cloned();
            Ok(found.map_or_else(|| Look::NotYet(format!("none among {count}")), Look::Yes))
        })
    }

    /// What is preserved of a folder in one class (`seen`, `unseen`).
    ///
    /// # Errors
    /// As [`Self::listing`].
    pub fn preserved(&self, folder: &str, class: &str) -> Result<Vec<Value>> {
        let all = self.listing(&["preserved", "list", folder])?;
        Ok(all.into_iter().filter(|item| item["class"].as_str() == Some(class)).collect())
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.home.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    fn log_file(&self) -> Result<File> {
        let path = self.home.join("log");
        OpenOptions::new().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
        if std::thread::panicking() {
            eprintln!("--- the log of {} ends with\n{}", self.name, self.log_tail());
        }
    }
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process id out of range")?;
    kill_process(id, signal).context("send a signal")
}

/// A port that was free a moment ago.
///
/// # Errors
/// When the loopback address gives none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind a loopback port")?;
    Ok(listener.local_addr().context("ask for the port")?.port())
}

/// The user for tests of what an ordinary user can do: another one when this is root, else the same; `None`, with a
/// word, where it cannot be arranged.
#[must_use]
pub fn ordinary_user() -> Option<User> {
    if !skip::is_root() {
        return Some(User::Same);
    }
    skip::programs_or_skip(&["setpriv"]).then_some(User::Number(65_534))
}
