//! The program: command line and daemon wiring, nothing else.
//!
//! Standard output carries data, standard error talk. Exit codes: 0 done; 1 done, and the answer is no; 2 usage or
//! configuration; 3 operation failed; 4 bug (style guide, section 11).

mod api;
mod commands;
mod daemon;
mod demo;
mod filehash;
mod invitations;
mod journal;
mod local;
mod problems;
mod reach;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Records, nodes and pieces of content are made and thrown away by the million, from several threads: the system's
/// allocator took an eighth of the processor time of an initial sync, and gave the memory of each large piece back to the
/// kernel only to ask for it again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Multi-master folder replication for Linux file servers.
#[derive(Parser)]
#[command(name = "anabranch", version, arg_required_else_help = true)]
struct Cli {
    /// Local state of this member.
    #[arg(long, global = true, env = "ANABRANCH_DATA", default_value = "/var/lib/anabranch", value_name = "DIR")]
    data: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a domain with this machine as its first member.
    Init {
        /// This member's name.
        #[arg(long)]
        name: String,
        /// Where it listens for partners.
        #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:7400")]
        listen: SocketAddr,
        /// Beneath which directories the domain may keep folders here (repeatable).
        #[arg(long, value_name = "DIR", default_value = "/srv")]
        root: Vec<PathBuf>,
    },
    /// Run the daemon, in the foreground.
    Serve,
    /// Print a one-time invitation for a further member.
    Invite {
        /// The name that the new member must take.
        #[arg(long)]
        name: Option<String>,
        /// How long it can be redeemed, such as 30s, 15m or 1h; a year at most.
        #[arg(long, default_value = "1h", value_parser = commands::validity)]
        valid: std::time::Duration,
    },
    /// Join a domain with an invitation.
    Join {
        /// What `anabranch invite` printed.
        invitation: String,
        /// This member's name.
        #[arg(long)]
        name: String,
        /// Where it listens for partners.
        #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:7400")]
        listen: SocketAddr,
        /// Beneath which directories the domain may keep folders here (repeatable).
        #[arg(long, value_name = "DIR", default_value = "/srv")]
        root: Vec<PathBuf>,
    },
    /// Members of the domain.
    #[command(subcommand)]
    Member(MemberCommand),
    /// Replication groups.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Replicated folders.
    #[command(subcommand)]
    Folder(FolderCommand),
    /// Show members, connections, folders and what is outstanding.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// What replication took out of the tree.
    #[command(subcommand)]
    Preserved(PreservedCommand),
    /// Show events.
    Events {
        /// Go on with new ones.
        #[arg(long)]
        follow: bool,
        /// As JSON, one event a line.
        #[arg(long)]
        json: bool,
    },
    /// Print the hashes of paths, data and attributes apart.
    Filehash {
        /// Files, directories or symlinks.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// As JSON, one path a line.
        #[arg(long)]
        json: bool,
    },
    /// Recovery after an unexpected shutdown.
    #[command(subcommand)]
    Recovery(RecoveryCommand),
    /// Watch three members on this machine replicate a real tree.
    Demo {
        /// The tree to copy; by default one that is found on this machine.
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
        /// End with a summary instead of staying until Ctrl-C.
        #[arg(long)]
        once: bool,
    },
}

#[derive(Subcommand)]
enum MemberCommand {
    /// List the members.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum GroupCommand {
    /// Make a group.
    Create {
        /// Its name.
        name: String,
        /// Its members, separated by commas.
        #[arg(long, value_delimiter = ',', required = true)]
        members: Vec<String>,
        /// mesh, hub:MEMBER or chain.
        #[arg(long, default_value = "mesh")]
        topology: String,
    },
    /// List the groups.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum FolderCommand {
    /// Make a replicated folder.
    Create {
        /// GROUP/FOLDER.
        name: String,
        /// The member whose files it begins with.
        #[arg(long)]
        primary: String,
        /// Where a member keeps it (repeatable).
        #[arg(long = "path", value_name = "MEMBER=PATH", required = true)]
        paths: Vec<String>,
        /// What becomes of a file that loses its name: preserve or keep.
        #[arg(long, default_value = "preserve")]
        policy: String,
        /// What counts as one name: bytes, or windows (regardless of case and of Unicode's forms). Stays as it is for ever.
        #[arg(long, default_value = "bytes")]
        names: String,
    },
    /// List the folders.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Wait until nothing is outstanding anywhere, or say what is. It goes by what this member has heard: run it where
    /// something was written; what was changed on a member that is away is not waited for.
    Wait {
        /// GROUP/FOLDER.
        name: String,
        /// How long at most.
        #[arg(long, default_value = "60s", value_parser = commands::duration)]
        timeout: std::time::Duration,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prove that members are equal, or say where they differ; with `--data` after the name, by all bytes here too.
    Verify {
        /// GROUP/FOLDER.
        name: String,
        /// Read all bytes here, too (written `--data` after `verify`).
        #[arg(long = "read-data", hide = true)]
        read_data: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum PreservedCommand {
    /// List what is preserved on this member.
    List {
        /// GROUP/FOLDER.
        name: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put items back into the tree.
    Restore {
        /// GROUP/FOLDER.
        name: String,
        /// Their numbers in the list.
        numbers: Vec<u64>,
        /// All items of the list, both classes: also what was deleted or replaced on purpose.
        #[arg(long, conflicts_with = "numbers")]
        all: bool,
    },
}

#[derive(Subcommand)]
enum RecoveryCommand {
    /// Go on with a folder that waits after an unexpected shutdown.
    Resume {
        /// GROUP/FOLDER.
        name: String,
    },
}

/// `folder verify --data` reads bytes, everywhere else `--data DIR` names the local state: behind `verify` the word
/// without `=` is the former, unless a directory that holds a member's state follows it.
fn arguments(words: impl Iterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut words = words.peekable();
    let (mut verify, mut out) = (false, Vec::new());
    while let Some(word) = words.next() {
        verify |= word == "verify";
        let state = words.peek().is_some_and(|next| local::Data(next.into()).exists().unwrap_or(false));
        out.push(if verify && word == "--data" && !state { "--read-data".into() } else { word });
    }
    out
}

fn main() -> ExitCode {
    // The allocator touches a little of many areas. With huge pages the kernel clears two mebibytes for each: half as much memory
    // again, and a tenth of the processor time of an initial sync. Where it cannot be had, that is all.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let cli = match Cli::try_parse_from(arguments(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are data and done; a mistake is usage.
            let code = if error.use_stderr() { 2 } else { 0 };
            // A closed pipe is not an error.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("ANABRANCH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A log that nobody can take, on a full disk or in a closed pipe, ends nothing; an error of its own would be a panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    log.log_internal_errors(false).init();
    match commands::run(cli) {
        Ok(code) => match commands::unprinted() {
            None => ExitCode::from(code),
            Some(cause) => {
                complain(
                    "error: cannot write to standard output; what was asked for is done, but not all of it was printed",
                );
                complain(&format!("  caused by: {cause}"));
                ExitCode::from(3)
            }
        },
        Err(failure) => {
            complain(&format!("error: {}", failure.error));
            if let Some(cause) = &failure.cause {
                complain(&format!("  caused by: {cause}"));
            }
            if let Some(hint) = &failure.hint {
                complain(&format!("hint: {hint}"));
            }
            ExitCode::from(failure.code)
        }
    }
}

/// A line on standard error, if that can be written.
pub(crate) fn complain(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
