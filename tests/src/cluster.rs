//! Members of one domain with one replicated folder, and what it means that they are in step.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::member::{Member, User};
use crate::program;
use crate::referee;
use crate::snapshot::{self, Snapshot};
use crate::until::{Look, until};

/// The folder of every scenario.
pub const FOLDER: &str = "web/site";

/// The event that says that a file was changed on several members (Windows' number).
pub const EVENT_CONFLICT: u64 = 4412;

/// Members of one domain.
pub struct Cluster {
    /// Members by place; the first made the domain and is the folder's primary.
    pub members: Vec<Member>,
    // Dropped last: the members' processes end first.
    dir: TempDir,
}

impl Cluster {
    /// So many members, `hq1` and on, in a mesh, with an empty folder in step.
    ///
    /// # Errors
    /// When any command on the way fails.
    pub fn mesh(count: usize) -> Result<Self> {
        Self::start(count, "mesh", User::Same)
    }

    /// Members of another topology or run by another user, with an empty folder in step.
    ///
    /// # Errors
    /// When any command on the way fails.
    pub fn start(count: usize, topology: &str, user: User) -> Result<Self> {
        let cluster = Self::joined(count, user)?;
        cluster.create_folder(topology)?;
        cluster.settle()?;
        Ok(cluster)
    }

    /// Two members with an empty folder in step, made with these further words of `folder create`.
    ///
    /// # Errors
    /// When any command on the way fails.
    pub fn pair_with(settings: &[&str]) -> Result<Self> {
        let cluster = Self::joined(2, User::Same)?;
        cluster.create_folder_with("mesh", settings)?;
        cluster.settle()?;
        Ok(cluster)
    }

    /// Members that share a domain and nothing else yet.
    ///
    /// # Errors
    /// When any command on the way fails.
    pub fn joined(count: usize, user: User) -> Result<Self> {
        let dir = scratch()?;
        let place = dir.path().to_path_buf();
        Self::joined_at(&place, dir, count, user)
    }

    /// As [`Self::joined`], with the members' directories in `place`, which lies in `dir` or is mounted there.
    ///
    /// # Errors
    /// When any command on the way fails.
    pub fn joined_at(place: &Path, dir: TempDir, count: usize, user: User) -> Result<Self> {
        let mut cluster = Self { members: Vec::new(), dir };
        for number in 1..=count {
            cluster.members.push(Member::prepare(place, &format!("hq{number}"), user)?);
        }
        cluster.found()?;
        for place in 1..count {
            cluster.join(place)?;
        }
        Ok(cluster)
    }

    fn found(&mut self) -> Result<()> {
        let first = self.members.first_mut().context("a cluster has at least one member")?;
        first.init()?;
        first.serve()
    }

    fn join(&mut self, place: usize) -> Result<()> {
        let name = self.members[place].name.clone();
        let invitation = self.members[0].invite(&name)?;
        self.members[place].ask_to_join(&invitation)?.done()?;
        self.members[place].serve()
    }

    /// Makes the group and the folder of all members, the first as primary.
    ///
    /// # Errors
    /// When a command fails.
    pub fn create_folder(&self, topology: &str) -> Result<()> {
        self.create_folder_with(topology, &[])
    }

    fn create_folder_with(&self, topology: &str, settings: &[&str]) -> Result<()> {
        let names: Vec<&str> = self.members.iter().map(|member| member.name.as_str()).collect();
        let first = &self.members[0];
        first.run(&["group", "create", "web", "--members", &names.join(","), "--topology", topology])?;
        let paths: Vec<String> =
            self.members.iter().map(|member| format!("{}={}", member.name, member.tree().display())).collect();
        let mut words = vec!["folder", "create", FOLDER, "--primary", &first.name];
        for path in &paths {
            words.extend(["--path", path]);
        }
        words.extend(settings);
        first.run(&words).map(drop)
    }

    /// The directory of the whole scenario.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until nothing is outstanding and all trees are equal.
    ///
    /// # Errors
    /// When that does not come to pass within two minutes, or a member ends.
    pub fn settle(&self) -> Result<()> {
        self.settle_within(Duration::from_secs(120))
    }

    /// As [`Self::settle`], with a limit. Members that were stopped are left out.
    ///
    /// # Errors
    /// As [`Self::settle`].
    pub fn settle_within(&self, limit: Duration) -> Result<()> {
        until("all members to be in step", limit, || {
            for member in self.running() {
                let waited = member.ask(&["folder", "wait", FOLDER, "--timeout", "20s"])?;
                match waited.code {
                    0 => {}
                    1 if self.waits_for_stopped_only(&waited.err) => {}
                    1 => return Ok(Look::NotYet(waited.to_string())),
                    // A member that was just started may not answer yet; anything else is an error at the deadline too.
                    _ => return Ok(Look::NotYet(format!("{waited}\n{}", member.log_tail()))),
                }
            }
            let difference = self.difference()?;
            Ok(Look::when(difference.is_none(), || difference.unwrap_or_default()))
        })
    }

    /// Is all that `folder wait` names outstanding at members that were stopped? It names the member first.
    fn waits_for_stopped_only(&self, said: &str) -> bool {
        let cause = said.lines().find_map(|line| line.trim().strip_prefix("caused by: "));
        let stopped: Vec<String> =
            self.members.iter().filter(|member| !member.started()).map(|member| format!("{}: ", member.name)).collect();
        cause.is_some_and(|cause| cause.split("; ").all(|part| stopped.iter().any(|name| part.starts_with(name))))
    }

    /// What differs between the trees of running members, by the referee and by our own comparison; `None` when equal.
    ///
    /// # Errors
    /// When the referee cannot run.
    pub fn difference(&self) -> Result<Option<String>> {
        let mut running = self.running();
        let Some(first) = running.next() else { bail!("no member runs") };
        for other in running {
            let found = referee::difference(&first.tree(), &other.tree())?;
            if !found.is_empty() {
                return Ok(Some(format!("{} and {} differ (rsync):\n{found}", first.name, other.name)));
            }
            // rsync leaves directories' attributes of the root and odd xattrs to chance; ours does not.
            match (Snapshot::take(&first.tree()), Snapshot::take(&other.tree())) {
                (Ok(one), Ok(two)) if one == two => {}
                (Ok(one), Ok(two)) => return Ok(Some(snapshot::explain(&first.name, &one, &other.name, &two))),
                (Err(error), _) | (_, Err(error)) => return Ok(Some(format!("{error:#}"))),
            }
        }
        Ok(None)
    }

    /// Holds the members to the invariant *Intent*: every tree is the writer's, nothing was preserved as *unseen*, no
    /// conflict was seen.
    ///
    /// # Errors
    /// When one of these does not hold.
    pub fn expect_intent(&self, writers_tree: &Snapshot) -> Result<()> {
        for member in &self.members {
            let tree = Snapshot::take(&member.tree())?;
            ensure!(tree == *writers_tree, snapshot::explain("the writer", writers_tree, &member.name, &tree));
            let unseen = member.preserved(FOLDER, "unseen")?;
            ensure!(unseen.is_empty(), "{} preserved as unseen what one writer wrote: {unseen:?}", member.name);
            let conflicts = member.events(EVENT_CONFLICT)?;
            ensure!(conflicts.is_empty(), "{} saw conflicts of one writer: {conflicts:?}", member.name);
        }
        Ok(())
    }

    /// Holds `folder verify` to saying that members are equal, bytes included.
    ///
    /// # Errors
    /// When it says otherwise.
    pub fn expect_verified(&self) -> Result<()> {
        self.members[0].run(&["folder", "verify", FOLDER, "--data"]).map(drop)
    }

    /// Waits until the daemon of every started member answers.
    ///
    /// # Errors
    /// When one does not.
    pub fn all_ready(&mut self) -> Result<()> {
        self.members.iter_mut().filter(|member| member.started()).try_for_each(Member::ready)
    }

    fn running(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| member.started())
    }
}

/// A directory that goes away with the test (`E2E_DIR` says where).
///
/// # Errors
/// When it cannot be made.
pub fn scratch() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("e2e-");
    match std::env::var_os("E2E_DIR") {
        Some(dir) => builder.tempdir_in(dir),
        None => builder.tempdir(),
    }
    .context("make a scratch directory")
}

/// A member alone, initialised and serving, for what goes wrong on one machine.
///
/// # Errors
/// When it does not start.
pub fn lone(user: User) -> Result<Cluster> {
    program::anabranch()?;
    Cluster::joined(1, user)
}
