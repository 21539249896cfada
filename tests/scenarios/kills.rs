//! `kill -9` at random points under load: members come back by themselves, nothing is lost, nobody sees a torn file.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use e2e::closed::Ledger;
use e2e::cluster::{Cluster, FOLDER};
use e2e::load::{Allowance, Left, SHARED, User};
use e2e::random::Random;
use e2e::snapshot::{Snapshot, preserved_hashes};

/// Watches, on every member, the directories in which only others write, until told to stop.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<u64>>,
}

impl Watch {
    fn start(cluster: &Cluster, ledger: &Ledger) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut places = Vec::new();
        for member in &cluster.members {
            let others = cluster.members.iter().filter(|other| other.name != member.name);
            places.extend(others.map(|other| member.tree().join(&other.name)));
        }
        let (ledger, stopped) = (ledger.clone(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                for place in &places {
                    looks += ledger.inspect(place)? as u64;
                }
            }
            Ok(looks)
        });
        Self { stop, thread }
    }

    fn end(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the watch panicked"))?
    }
}

#[test]
fn members_killed_under_load_lose_nothing_and_come_back_in_step() -> Result<()> {
    let kills = e2e::setting("KILLS", 20);
    let mut cluster = Cluster::mesh(3)?;
    let mut random = Random::for_test("kills");
    let (ledger, allowance) = (Ledger::default(), Allowance::default());
    let users = cluster
        .members
        .iter()
        .map(|member| User::start(&member.name, &member.tree(), &ledger, &allowance))
        .collect::<Result<Vec<_>>>()?;
    let watch = Watch::start(&cluster, &ledger);

    for kill in 0..kills {
        let victim = usize::try_from(random.within(0..3)).unwrap_or(0);
        allowance.spend(random.within(1..150))?;
        cluster.members[victim].kill()?;
        // Sometimes the users go on meanwhile, sometimes it is back at once; sometimes it dies again while starting.
        if random.percent(60) {
            allowance.spend(random.within(1..80))?;
        }
        cluster.members[victim].start()?;
        if random.percent(70) {
            cluster.members[victim].ready()?;
        }
        eprintln!("kill {} of {kills}: {}", kill + 1, cluster.members[victim].name);
    }
    allowance.spend(50)?;
    allowance.end();
    let left = users.into_iter().map(User::end).collect::<Result<Vec<_>>>()?;
    cluster.all_ready()?;
    cluster.settle_within(Duration::from_secs(300))?;
    let looks = watch.end()?;
    eprintln!("{} operations, {looks} looks at files", allowance.made());
    ensure!(looks > 0, "the watch saw no file");

    expect_own_files(&cluster, &left)?;
    expect_shared_files(&cluster, &left)?;
    cluster.expect_verified()
}

/// Where one user writes, every member shows exactly what he closed last, and nothing of it was taken for a conflict.
fn expect_own_files(cluster: &Cluster, left: &[Left]) -> Result<()> {
    for member in &cluster.members {
        for user in left {
            let shown = Snapshot::take(&member.tree().join(&user.writer))?;
            ensure!(
                shown.files().count() == user.own.len(),
                "{} shows {} files of {}, who left {}",
                member.name,
                shown.files().count(),
                user.writer,
                user.own.len()
            );
            for (path, bytes) in &user.own {
                let found = std::fs::read(member.tree().join(path)).ok();
                ensure!(found.as_ref() == Some(bytes), "{} has not what {} closed last", member.name, path.display());
            }
        }
        let shared = format!("{SHARED}/");
        let unseen = member.preserved(FOLDER, "unseen")?;
        let strange = unseen.iter().find(|item| !item["path"].as_str().is_some_and(|path| path.starts_with(&shared)));
        ensure!(strange.is_none(), "{} preserved as unseen what one writer wrote: {strange:?}", member.name);
    }
    Ok(())
}

/// Where all write, what each closed last is in the tree or preserved somewhere.
fn expect_shared_files(cluster: &Cluster, left: &[Left]) -> Result<()> {
    let mut known = BTreeSet::new();
    for member in &cluster.members {
        let tree = Snapshot::take(&member.tree())?;
        known.extend(tree.files().map(|(_, hash)| *hash.as_bytes()));
        known.extend(preserved_hashes(&member.tree())?.into_iter().map(|hash| *hash.as_bytes()));
    }
    for user in left {
        for (path, bytes) in &user.shared {
            let found = known.contains(blake3::hash(bytes).as_bytes());
            ensure!(found, "what {} closed last in {} is nowhere", user.writer, path.display());
        }
    }
    Ok(())
}
