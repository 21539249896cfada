//! The stage: a temporary folder with three members, their processes, and their end.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anabranch_console::{Failure, ask};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::Outcome;
use super::voice::{bytes, shown};

/// The members' names.
pub(crate) const NAMES: [&str; 3] = ["hq1", "hq2", "hq3"];
/// The replicated folder.
pub(crate) const FOLDER: &str = "demo/tree";
/// Set for a process that is to become a member: the process id of the demonstration.
pub(crate) const PARENT: &str = "ANABRANCH_DEMO_PARENT";
/// This executable, also when another has been put in its place meanwhile.
const PROGRAM: &str = "/proc/self/exe";
/// How long a member may take until it answers.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a member may take to end in order.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Lines of each log that are shown after a failure.
const TAIL_LINES: usize = 12;

/// One of the three.
pub(crate) struct Member {
    pub(crate) name: &'static str,
    home: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl Member {
    pub(crate) fn tree(&self) -> PathBuf {
        self.home.join("tree")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Fails if the process ended by itself.
    fn expect_running(&mut self) -> Outcome<()> {
        let Some(child) = &mut self.process else { return Ok(()) };
        match child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(Failure::failed(format!("{} ended by itself", self.name)).because(status.to_string()).into())
            }
            Err(error) => {
                Err(Failure::failed(format!("cannot look after {}", self.name)).because(error.to_string()).into())
            }
        }
    }
}

/// The members and their folder.
pub(crate) struct Stage {
    dir: PathBuf,
    pub(crate) members: [Member; 3],
}

impl Stage {
    /// Makes the folder, in which so many bytes should find room.
    pub(crate) fn new(need_bytes: u64) -> Result<Self, Failure> {
        let parent = std::env::temp_dir();
        let failed = |path: &Path, e: std::io::Error| {
            Failure::failed(format!("cannot make {}", path.display()))
                .because(e.to_string())
                .hint("set TMPDIR to a directory in which you may write")
        };
        let real = fs::canonicalize(&parent).map_err(|e| failed(&parent, e))?;
        enough_room(&real, need_bytes)?;
        let dir = real.join(format!("anabranch-demo-{:08x}", random()?));
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|e| failed(&dir, e))?;
        let [a, b, c] = NAMES.map(|name| Member { name, home: dir.join(name), port: 0, process: None });
        let mut stage = Self { dir, members: [a, b, c] };
        for member in &stage.members {
            for path in [member.data(), member.tree()] {
                fs::create_dir_all(&path).map_err(|e| failed(&path, e))?;
            }
        }
        for (member, port) in stage.members.iter_mut().zip(free_ports()?) {
            member.port = port;
        }
        Ok(stage)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn trees(&self) -> [PathBuf; 3] {
        [0, 1, 2].map(|place: usize| self.members[place].tree())
    }

    /// `--listen` and `--root` of a member.
    pub(crate) fn place(&self, place: usize) -> [String; 4] {
        let member = &self.members[place];
        let root = member.home.display().to_string();
        ["--listen".into(), format!("127.0.0.1:{}", member.port), "--root".into(), root]
    }

    /// Runs a command of the program at a member; gives what it printed.
    pub(crate) async fn command<S: AsRef<OsStr>>(&self, place: usize, arguments: &[S]) -> Outcome<String> {
        let member = &self.members[place];
        let words: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        let said = format!("`anabranch {}` at {}", words.join(" "), member.name);
        let mut command = Command::new(PROGRAM);
        command.arg0("anabranch").arg("--data").arg(member.data()).args(arguments);
        command.env("ANABRANCH_LOG", "error").stdin(Stdio::null()).kill_on_drop(true).process_group(0);
        let output = tokio::time::timeout(COMMAND_LIMIT, command.output()).await;
        let output = output
            .map_err(|_| Failure::failed(format!("{said} took more than {} s", COMMAND_LIMIT.as_secs())))?
            .map_err(|e| Failure::failed(format!("{said} cannot be run")).because(e.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "\n    ");
        Err(Failure::failed(format!("{said} failed ({})", output.status)).because(words).into())
    }

    /// Asks a member on its local socket, as the command line does.
    pub(crate) async fn ask(&mut self, place: usize, call: &str, with: Value) -> Outcome<Value> {
        self.members[place].expect_running()?;
        let member = &self.members[place];
        let answer = ask(&member.data().join("socket"), call, with).await;
        Ok(answer.map_err(|failure| Failure {
            error: format!("{}: {}", member.name, failure.error),
            code: 3,
            ..failure
        })?)
    }

    /// Asks a member something about the folder.
    pub(crate) async fn ask_folder(&mut self, place: usize, call: &str, mut with: Value) -> Outcome<Value> {
        with["name"] = json!(FOLDER);
        self.ask(place, call, with).await
    }

    /// Fails if a member ended by itself.
    pub(crate) fn expect_running(&mut self) -> Outcome<()> {
        self.members.iter_mut().try_for_each(Member::expect_running)
    }

    /// Starts a member's daemon and waits until it answers.
    pub(crate) async fn start(&mut self, place: usize) -> Outcome<()> {
        let member = &mut self.members[place];
        let failed =
            |e: std::io::Error| Failure::failed(format!("cannot start {}", member.name)).because(e.to_string());
        let log = File::options().create(true).append(true).open(member.log()).map_err(failed)?;
        let mut command = Command::new(PROGRAM);
        command.arg0("anabranch").arg("--data").arg(member.data()).arg("demo");
        command.env(PARENT, std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        // A process group of its own: Ctrl-C is for us, and we end it in order.
        command.process_group(0).kill_on_drop(true);
        member.process = Some(command.spawn().map_err(failed)?);
        let until = Instant::now() + READY_LIMIT;
        loop {
            match self.ask(place, "status", Value::Null).await {
                Ok(_) => return Ok(()),
                Err(stop) => {
                    self.members[place].expect_running()?;
                    if Instant::now() >= until {
                        return Err(stop);
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends a member's daemon in order.
    pub(crate) async fn stop(&mut self, place: usize) -> Outcome<()> {
        let member = &mut self.members[place];
        member.expect_running()?;
        let Some(child) = member.process.as_mut() else { return Ok(()) };
        terminate(child);
        let status = tokio::time::timeout(END_LIMIT, child.wait()).await;
        match status {
            Ok(Ok(status)) if status.success() => {
                member.process = None;
                Ok(())
            }
            Ok(Ok(status)) => {
                Err(Failure::failed(format!("{} did not end in order", member.name)).because(status.to_string()).into())
            }
            Ok(Err(error)) => {
                Err(Failure::failed(format!("cannot end {}", member.name)).because(error.to_string()).into())
            }
            Err(_) => {
                Err(Failure::failed(format!("{} did not end within {} s", member.name, END_LIMIT.as_secs())).into())
            }
        }
    }

    /// The ends of the logs.
    pub(crate) fn logs(&self) -> String {
        let mut out = String::new();
        for member in &self.members {
            let bytes = fs::read(member.log()).unwrap_or_default();
            let tail = tail(&String::from_utf8_lossy(&bytes), TAIL_LINES);
            if !tail.is_empty() {
                out.push_str(&format!("--- the log of {} ends with\n{tail}\n", member.name));
            }
        }
        out
    }

    /// What to do where the room for the folder is used up; `None` where it is not.
    pub(crate) fn no_room_left(&self) -> Option<String> {
        const LITTLE_BYTES: u64 = 4 << 20;
        let room = rustix::fs::statvfs(&self.dir).ok()?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        (free < LITTLE_BYTES).then(|| {
            format!("the disk with {} is full: set TMPDIR to a directory with more room", shown_path(&self.dir))
        })
    }

    /// Ends the members and removes the folder.
    pub(crate) async fn end(mut self) -> Result<(), Failure> {
        for child in self.members.iter_mut().filter_map(|m| m.process.as_mut()) {
            terminate(child);
        }
        let until = tokio::time::Instant::now() + END_LIMIT;
        for child in self.members.iter_mut().filter_map(|m| m.process.as_mut()) {
            if tokio::time::timeout_at(until, child.wait()).await.is_err() {
                // Gone already is as good.
                let _ = child.kill().await;
            }
        }
        let dir = std::mem::take(&mut self.dir);
        remove(&dir).map_err(|e| {
            Failure::failed(format!("cannot remove {}", dir.display()))
                .because(e.to_string())
                .hint("remove it yourself")
        })
    }
}

impl Drop for Stage {
    /// Where it did not come to [`Self::end`]: the processes are killed as they are dropped.
    fn drop(&mut self) {
        if !self.dir.as_os_str().is_empty() {
            // There is nobody to tell any more.
            let _ = remove(&self.dir);
        }
    }
}

/// Becomes `anabranch serve`, to be killed when the demonstration ends, however it does; returns only if that failed.
pub(crate) fn become_member(parent: &OsStr) -> Failure {
    match try_become_member(parent) {
        Err(failure) => failure,
        Ok(never) => match never {},
    }
}

fn try_become_member(parent: &OsStr) -> Result<Infallible, Failure> {
    let failed = |cause: String| Failure::failed("cannot become a member of the demonstration").because(cause);
    // It stays across the exec.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| failed(e.to_string()))?;
    let ours = rustix::process::getppid().map(|p| p.as_raw_nonzero().to_string());
    if ours.as_deref().map(OsStr::new) != Some(parent) {
        return Err(failed("the demonstration has ended".into()));
    }
    // The data directory was named on the command line, as `serve` takes it too.
    let mut words: Vec<_> = std::env::args_os().skip(1).collect();
    words.retain(|word| word != "demo");
    words.push("serve".into());
    let error = std::process::Command::new(PROGRAM).arg0("anabranch").args(words).env_remove(PARENT).exec();
    Err(failed(error.to_string()))
}

fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        // It was not waited for, so the number is still its own; one that has ended needs no signal.
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
}

fn enough_room(dir: &Path, need: u64) -> Result<(), Failure> {
    // Where the file system does not say, the copying will.
    let Ok(room) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free >= need {
        return Ok(());
    }
    Err(Failure::failed(format!("there is not enough room in {}", shown_path(dir)))
        .because(format!(
            "three copies and the members' state take about {}, and {} are free",
            bytes(need),
            bytes(free)
        ))
        .hint("set TMPDIR to a directory with more room, or name a smaller tree with --from DIR"))
}

/// Removes a folder with all that is in it, also where the owner may not write.
fn remove(dir: &Path) -> std::io::Result<()> {
    if fs::remove_dir_all(dir).is_ok() {
        return Ok(());
    }
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(dir)
}

fn shown_path(path: &Path) -> String {
    shown(path.as_os_str().as_encoded_bytes())
}

fn random() -> Result<u32, Failure> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::failed("the system gives no random bytes").because(e.to_string()))?;
    Ok(u32::from_le_bytes(bytes))
}

/// Three ports that are free, below those that the kernel gives to connections that go out: none of these can take one
/// while a member is stopped.
fn free_ports() -> Result<Vec<u16>, Failure> {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    let begin = random()?;
    let mut held = Vec::new();
    for step in 0..COUNT {
        let port = u16::try_from(FIRST + begin.wrapping_add(step) % COUNT).unwrap_or_default();
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push((listener, port));
        }
        if held.len() == NAMES.len() {
            return Ok(held.iter().map(|(_, port)| *port).collect());
        }
    }
    Err(Failure::failed("no port is free on 127.0.0.1"))
}

/// The last lines of a text.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log() {
        assert_eq!(tail("", 3), "");
        assert_eq!(tail("a\nb\n", 3), "a\nb");
        assert_eq!(tail("a\nb\nc\nd\n", 2), "c\nd");
    }

    #[test]
    fn ports_are_three_and_differ() {
        let mut ports = free_ports().unwrap();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 3);
    }

    #[test]
    fn too_little_room_is_said_before_anything_is_made() {
        let failure = enough_room(Path::new("/"), u64::MAX).unwrap_err();
        assert_eq!(failure.code, 3);
        assert!(failure.cause.is_some_and(|c| c.contains("are free")));
        assert_eq!(enough_room(Path::new("/"), 0), Ok(()));
    }

    #[test]
    fn a_folder_is_removed_whatever_its_permissions() {
        let dir = std::env::temp_dir().join(format!("anabranch-test-remove-{}", std::process::id()));
        fs::create_dir_all(dir.join("closed/inner")).unwrap();
        fs::write(dir.join("closed/inner/file"), "x").unwrap();
        for (path, mode) in [("closed/inner", 0o500), ("closed", 0o000)] {
            fs::set_permissions(dir.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }
        remove(&dir).unwrap();
        assert!(!dir.exists());
    }
}
