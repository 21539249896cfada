//! What is shown, act by act: the domain, the copy, the proof, edits, a rename, a conflict, the summary.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anabranch_console::Failure;
use serde_json::{Value, json};

use super::compare::{Totals, Tree, below, count, difference, joined};
use super::source::{Progress, Source};
use super::stage::{FOLDER, NAMES, Stage};
use super::voice::{Voice, bytes, counted, grouped, median, shown, span};
use super::{Cancel, Outcome, Stop};

/// How often progress is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Without any progress for so long the demonstration has failed.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How long a single change may take to be everywhere.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// Edits on each member.
const EDITS: usize = 7;

/// Shows all of it, up to and with the summary.
pub(crate) async fn play(stage: &mut Stage, voice: &mut Voice, source: &Arc<Source>, cancel: &Cancel) -> Outcome<()> {
    let mut show = Show { stage, voice, cancel, summary: Vec::new() };
    show.domain().await?;
    show.copy(source).await?;
    let tree = show.prove("the copy").await?;
    show.edits(&tree).await?;
    let moved = show.rename(&tree).await?;
    show.conflict(&tree, &moved).await?;
    let tree = show.prove("the end").await?;
    show.sum_up(tree.totals())
}

/// Stays until it is dropped, and says what changes.
pub(crate) async fn stay(stage: &mut Stage, voice: &mut Voice) -> Outcome<()> {
    voice.line("\nThe three members go on until Ctrl-C; then their folder is removed. Play with the trees:")?;
    for member in &stage.members {
        voice.line(&format!("  {}  {}", member.name, member.tree().display()))?;
    }
    voice.line(&format!("  ANABRANCH_DATA={} anabranch status", stage.members[0].data().display()))?;
    let mut seen = None;
    loop {
        let mut words = Vec::new();
        for (place, name) in NAMES.iter().enumerate() {
            let status = folder_status(stage, place).await?;
            let outstanding = status["outstanding"].as_u64().unwrap_or(0);
            let state = match (status["error"].as_str(), outstanding) {
                (Some(error), _) => format!(", stopped: {error}"),
                (None, 0) => String::new(),
                (None, more) => format!(", {} outstanding", grouped(more)),
            };
            let items = counted(status["files"].as_u64().unwrap_or(0), "item", "items");
            let installed = grouped(status["installed"].as_u64().unwrap_or(0));
            words.push(format!("{name}: {items}, {installed} installed{state}"));
        }
        let line = format!("  {}", words.join("   "));
        if seen.as_ref() != Some(&line) {
            voice.line(&line)?;
            seen = Some(line);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn folder_status(stage: &mut Stage, place: usize) -> Outcome<Value> {
    let status = stage.ask(place, "status", Value::Null).await?;
    let folder = status["folders"].as_array().and_then(|all| all.iter().find(|f| f["name"] == FOLDER)).cloned();
    folder.ok_or_else(|| Failure::failed(format!("{} does not keep {FOLDER}", NAMES[place])).into())
}

/// The members whose turn it is not.
fn others(place: usize) -> [usize; 2] {
    match place {
        0 => [1, 2],
        1 => [0, 2],
        _ => [0, 1],
    }
}

struct Show<'a> {
    stage: &'a mut Stage,
    voice: &'a mut Voice,
    cancel: &'a Cancel,
    summary: Vec<(&'static str, String)>,
}

impl Show<'_> {
    fn say(&mut self, text: &str) -> Outcome<()> {
        self.voice.line(text)
    }

    /// A command, shown and run.
    async fn command(&mut self, place: usize, words: &[&str]) -> Outcome<String> {
        self.say(&format!("  {}# anabranch {}", NAMES[place], words.join(" ")))?;
        self.stage.command(place, words).await
    }

    async fn domain(&mut self) -> Outcome<()> {
        let dir = self.stage.dir().display().to_string();
        self.say(&format!("\nThree members in {dir}, talking over TLS on 127.0.0.1"))?;
        for (place, name) in NAMES.into_iter().enumerate() {
            let at = self.stage.place(place);
            let at: Vec<&str> = at.iter().map(String::as_str).collect();
            if place == 0 {
                self.command(0, &[&["init", "--name", name], at.as_slice()].concat()).await?;
            } else {
                let invitation = self.command(0, &["invite", "--name", name]).await?;
                let words = [&["join", &invitation, "--name", name], at.as_slice()].concat();
                self.say(&format!("  {name}# anabranch join INVITATION --name {name} {}", at.join(" ")))?;
                self.stage.command(place, &words).await?;
            }
            self.say(&format!("  {name}# anabranch serve"))?;
            self.stage.start(place).await?;
        }
        self.all_known().await?;
        let (group, _) = FOLDER.split_once('/').unwrap_or((FOLDER, ""));
        self.command(0, &["group", "create", group, "--members", &NAMES.join(",")]).await?;
        let mut words = vec!["folder".into(), "create".into(), FOLDER.into(), "--primary".into(), NAMES[0].into()];
        for (name, tree) in NAMES.iter().zip(self.stage.trees()) {
            words.extend(["--path".to_owned(), format!("{name}={}", tree.display())]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.command(0, &words).await?;
        self.in_step().await
    }

    /// Waits until every member knows the three.
    async fn all_known(&mut self) -> Outcome<()> {
        let until = Instant::now() + CHANGE_LIMIT;
        for (place, name) in NAMES.iter().enumerate() {
            loop {
                let list = self.stage.ask(place, "member.list", Value::Null).await?;
                if list.as_array().is_some_and(|members| members.len() == NAMES.len()) {
                    break;
                }
                if Instant::now() >= until {
                    return Err(Failure::failed(format!("{name} does not know all members")).into());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    async fn copy(&mut self, source: &Arc<Source>) -> Outcome<()> {
        let trees = self.stage.trees();
        self.say(&format!("\nCopying it into {}", trees[0].display()))?;
        let progress = Arc::new(Progress::default());
        let began = Instant::now();
        let mut copying = {
            let (source, progress, to) = (Arc::clone(source), Arc::clone(&progress), trees[0].clone());
            let cancel = Arc::clone(self.cancel);
            tokio::task::spawn_blocking(move || source.copy(&to, &progress, &cancel))
        };
        let mut left_out = None;
        let mut last = (Instant::now(), 0);
        loop {
            if left_out.is_none() {
                let wait = tokio::time::timeout(LOOK_EVERY, &mut copying).await;
                if let Ok(done) = wait {
                    left_out = Some(done.map_err(|e| Failure::failed("copying ended early").because(e.to_string()))??);
                }
            } else {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            self.stage.expect_running()?;
            let looked = Instant::now();
            let copied = progress.files.load(Ordering::Relaxed);
            let there = [copied, self.count(&trees[1]).await?, self.count(&trees[2]).await?];
            self.voice.progress(&progress_line(there, source.files, began.elapsed()))?;
            let sum = there.iter().sum::<u64>();
            if left_out.is_some() && sum >= 3 * copied {
                break;
            }
            if sum != last.1 {
                last = (Instant::now(), sum);
            } else if last.0.elapsed() > STALL_LIMIT {
                return Err(self.stalled().await?.into());
            }
            // A look at a large tree is not to take the time that the members need.
            tokio::time::sleep(looked.elapsed() * 4).await;
        }
        self.in_step().await?;
        let took = began.elapsed();
        let copied = progress.files.load(Ordering::Relaxed);
        self.say(&progress_line([copied; 3], copied, took))?;
        if let Some(words) = left_out.and_then(|l| l.words()) {
            self.say(&format!("  {}; {words}", source.copied_words(&progress)))?;
        }
        self.summary.push((
            "copied",
            format!("{} to two other members in {}, copying included", counted(copied, "file", "files"), span(took)),
        ));
        Ok(())
    }

    /// Nothing arrives any more: what the members say of it.
    async fn stalled(&mut self) -> Outcome<Failure> {
        let mut causes = Vec::new();
        for place in 0..NAMES.len() {
            match self.stage.ask_folder(place, "folder.wait", json!({"timeout_ms": 0})).await {
                Ok(_) => {}
                Err(Stop::Failed(failure)) => causes.push(failure.cause.unwrap_or(failure.error)),
                Err(other) => return Err(other),
            }
        }
        let failure = Failure::failed(format!("nothing has arrived for {} s", STALL_LIMIT.as_secs()));
        Ok(failure.because(causes.join("\n    ")))
    }

    async fn count(&self, tree: &Path) -> Outcome<u64> {
        let tree = tree.to_path_buf();
        let counted = tokio::task::spawn_blocking(move || count(&tree)).await;
        Ok(counted.map_err(|e| Failure::failed("counting ended early").because(e.to_string()))?)
    }

    /// Waits until nothing is outstanding at any member.
    async fn in_step(&mut self) -> Outcome<()> {
        let limit = u64::try_from(STALL_LIMIT.as_millis()).unwrap_or(u64::MAX);
        for place in 0..NAMES.len() {
            self.stage.ask_folder(place, "folder.wait", json!({"timeout_ms": limit})).await?;
        }
        Ok(())
    }

    /// Proves that the three trees are the same: by the members' own comparison, and by walking and reading them.
    async fn prove(&mut self, when: &str) -> Outcome<Tree> {
        self.say(&format!("\nAre the trees equal after {when}?"))?;
        self.in_step().await?;
        for (place, name) in NAMES.iter().enumerate() {
            self.say(&format!("  {name}# anabranch folder wait {FOLDER} && anabranch folder verify {FOLDER} --data"))?;
            let found = self.stage.ask_folder(place, "folder.verify", json!({"data": true})).await?;
            let partners: Vec<&str> =
                found["partners"].as_array().into_iter().flatten().filter_map(|p| p["partner"].as_str()).collect();
            if found["equal"] != true || partners.len() != 2 {
                return Err(Failure::failed(format!("{name} is not equal to its partners"))
                    .because(found.to_string())
                    .into());
            }
            self.say(&format!("    equal to {}", partners.join(" and ")))?;
        }
        let trees = self.take_trees().await?;
        let [one, two, three] = &trees;
        for (name, other) in [(NAMES[1], two), (NAMES[2], three)] {
            if let Some(words) = difference((NAMES[0], one), (name, other)) {
                return Err(Failure::failed(format!("{} and {name} differ", NAMES[0])).because(words).into());
            }
        }
        let totals = one.totals();
        self.say(&format!(
            "  and by an independent walk equal in names, types, bytes, modes, owners, times: {}",
            words(totals)
        ))?;
        let [one, ..] = trees;
        Ok(one)
    }

    async fn take_trees(&mut self) -> Outcome<[Tree; 3]> {
        let work = self.stage.trees().map(|root| {
            let cancel = Arc::clone(self.cancel);
            tokio::task::spawn_blocking(move || Tree::take(&root, &cancel))
        });
        let mut taken = Vec::new();
        for tree in work {
            taken.push(tree.await.map_err(|e| Failure::failed("the comparison ended early").because(e.to_string()))??);
        }
        taken.try_into().map_err(|_| Failure { code: 4, ..Failure::failed("not three trees") }.into())
    }

    /// Waits until a file has these bytes on all the members named; the time each took from `since` on.
    async fn arrive(&mut self, within: &[u8], bytes: &[u8], at: &[usize], since: Instant) -> Outcome<Vec<Duration>> {
        let trees = self.stage.trees();
        let holds = |path: &Path| {
            path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == bytes.len() as u64)
                && fs::read(path).is_ok_and(|found| found == bytes)
        };
        let what = format!("{} to have its new content", shown(within));
        self.appear(&what, at, since, |place| holds(&below(&trees[place], within))).await
    }

    /// Waits until something is so at all the members named; the time each took from `since` on.
    async fn appear(
        &mut self,
        what: &str,
        at: &[usize],
        since: Instant,
        so: impl Fn(usize) -> bool,
    ) -> Outcome<Vec<Duration>> {
        let mut times: BTreeMap<usize, Duration> = BTreeMap::new();
        loop {
            for place in at {
                if !times.contains_key(place) && so(*place) {
                    times.insert(*place, since.elapsed());
                }
            }
            if times.len() == at.len() {
                return Ok(at.iter().filter_map(|place| times.get(place).copied()).collect());
            }
            if since.elapsed() > CHANGE_LIMIT {
                self.stage.expect_running()?;
                let missing: Vec<&str> = at.iter().filter(|p| !times.contains_key(p)).map(|p| NAMES[*p]).collect();
                let failure = Failure::failed(format!("waited {} s for {what}", CHANGE_LIMIT.as_secs()));
                return Err(failure.because(format!("it is not so on {}", missing.join(" and "))).into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn edits(&mut self, tree: &Tree) -> Outcome<()> {
        self.say("\nEdits on each member; how long until the others show them")?;
        let trees = self.stage.trees();
        let files = tree.small_files(EDITS * NAMES.len());
        let mut all = Vec::new();
        for (place, name) in NAMES.iter().enumerate() {
            let mut times = [Vec::new(), Vec::new()];
            for round in 0..EDITS {
                // A tree without enough files that can be edited gets some.
                let number = place * EDITS + round;
                let within =
                    files.get(number).cloned().unwrap_or_else(|| format!("written-by-{name}-{number}").into_bytes());
                let line = format!("A line that {name} wrote.\n");
                let (bytes, since) = append(&below(&trees[place], &within), &line)?;
                let took = self.arrive(&within, &bytes, &others(place), since).await?;
                for (list, time) in times.iter_mut().zip(took) {
                    list.push(time);
                    all.push(time);
                }
            }
            let words: Vec<String> = others(place)
                .iter()
                .zip(&times)
                .map(|(other, list)| format!("{} after {}", NAMES[*other], span(median(list).unwrap_or_default())))
                .collect();
            self.say(&format!("  {EDITS} on {name}: on {} (median)", words.join(", on ")))?;
        }
        let (middle, slowest) = (median(&all).unwrap_or_default(), all.iter().max().copied().unwrap_or_default());
        self.summary.push((
            "edits",
            format!(
                "{} on the others after {} (median), {} (slowest)",
                EDITS * NAMES.len(),
                span(middle),
                span(slowest)
            ),
        ));
        Ok(())
    }

    /// Renames the largest directory; its old and its new path.
    async fn rename(&mut self, tree: &Tree) -> Outcome<(Vec<u8>, Vec<u8>)> {
        self.say("\nA directory is renamed")?;
        let trees = self.stage.trees();
        let (old, inside) = match tree.largest_directory() {
            Some(found) => found,
            None => self.make_directory().await?,
        };
        let parent = old.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |at| old.get(..at).unwrap_or_default());
        let new = (0..)
            .map(|number: u32| {
                joined(
                    parent,
                    format!("renamed-by-hq2{}", if number == 0 { String::new() } else { number.to_string() })
                        .as_bytes(),
                )
            })
            .find(|path| !tree.0.contains_key(path))
            .unwrap_or_default();
        self.in_step().await?;
        let before = self.traffic().await?;
        let (from, to) = (below(&trees[1], &old), below(&trees[1], &new));
        let since = Instant::now();
        fs::rename(&from, &to)
            .map_err(|e| Failure::failed(format!("cannot rename {}", from.display())).because(e.to_string()))?;
        let what = format!("{} to be named {}", shown(&old), shown(&new));
        let moved = |place: usize| {
            below(&trees[place], &new).is_dir() && below(&trees[place], &old).symlink_metadata().is_err()
        };
        let took = self.appear(&what, &others(1), since, moved).await?.into_iter().max().unwrap_or_default();
        self.in_step().await?;
        let after = self.traffic().await?;
        for tree in &trees {
            let there = self.count(&below(tree, &new)).await?;
            if there != inside {
                let failure = Failure::failed(format!("{inside} files were renamed, {there} are there"));
                return Err(failure.because(below(tree, &new).display().to_string()).into());
            }
        }
        let cost = cost(before, after);
        let files = counted(inside, "file", "files");
        self.say(&format!("  on hq2: {} with {files} is now {}", shown(&old), shown(&new)))?;
        self.say(&format!("  on hq1 and hq3 after {}; {cost}", span(took)))?;
        self.summary.push(("renamed", format!("a directory of {files}, everywhere after {}; {cost}", span(took))));
        Ok((old, new))
    }

    /// A directory to rename, where the tree has none.
    async fn make_directory(&mut self) -> Outcome<(Vec<u8>, u64)> {
        const FILES: u64 = 20;
        let (trees, dir) = (self.stage.trees(), b"a-directory".to_vec());
        let path = below(&trees[1], &dir);
        let failed =
            |e: std::io::Error| Failure::failed(format!("cannot make {}", path.display())).because(e.to_string());
        fs::create_dir(&path).map_err(failed)?;
        for number in 0..FILES {
            fs::write(path.join(format!("file-{number}")), format!("{number}\n")).map_err(failed)?;
        }
        let all = |place: usize| count(&below(&trees[place], &dir)) == FILES;
        self.appear("a new directory to arrive", &others(1), Instant::now(), all).await?;
        Ok((dir, FILES))
    }

    /// Bytes of content sent by all members, and bytes on the wire where the members say so.
    async fn traffic(&mut self) -> Outcome<(u64, Option<u64>)> {
        let (mut content, mut wire) = (0, Some(0));
        for place in 0..NAMES.len() {
            let folder = folder_status(self.stage, place).await?;
            content += folder["content_sent"].as_u64().unwrap_or(0);
            let status = self.stage.ask(place, "status", Value::Null).await?;
            wire = wire.zip(status["wire"]["sent_bytes"].as_u64()).map(|(sum, more)| sum + more);
        }
        Ok((content, wire))
    }

    async fn conflict(&mut self, tree: &Tree, moved: &(Vec<u8>, Vec<u8>)) -> Outcome<()> {
        self.say("\nA partition and a conflict")?;
        let trees = self.stage.trees();
        let within = self.file_for_conflict(tree, moved).await?;
        self.say("  hq3 is cut off (its daemon is stopped)")?;
        self.stage.stop(2).await?;
        let mut written = Vec::new();
        for (place, name) in [(0, NAMES[0]), (2, NAMES[2])] {
            let (bytes, since) =
                append(&below(&trees[place], &within), &format!("What {name} wrote while hq3 was cut off.\n"))?;
            written.push(bytes);
            self.say(&format!("  on {name} somebody edits {}", shown(&within)))?;
            if place == 0 {
                // With hq2 it is there at once; hq3 knows nothing of it.
                self.arrive(&within, &written[0], &[1], since).await?;
            }
        }
        self.say("  hq3 is back")?;
        let since = Instant::now();
        self.stage.start(2).await?;
        self.in_step().await?;
        let won = self.winner(&within, &written)?;
        let lost = 1 - won;
        let took = span(since.elapsed());
        let (winner, loser) = if won == 0 { (NAMES[0], NAMES[2]) } else { (NAMES[2], NAMES[0]) };
        self.say(&format!(
            "  all members show what {winner} wrote, {took} after its start; what {loser} wrote is kept:"
        ))?;
        let kept = self.kept(&within, &written[lost]).await?;
        for (place, number, path) in &kept {
            self.say(&format!("    on {}: {path} (item {number})", NAMES[*place]))?;
        }
        let Some((place, number, path)) = kept.into_iter().next() else {
            return Err(Failure::failed(format!("the conflict of {} left no losing copy", shown(&within))).into());
        };
        let restored = self.command(place, &["preserved", "restore", FOLDER, &number.to_string()]).await?;
        let back = below(&trees[place], restored.as_bytes());
        let since = Instant::now();
        self.arrive(restored.as_bytes(), &written[lost], &[0, 1, 2], since).await?;
        self.say(&format!(
            "    it is back on all members as {}",
            shown(back.strip_prefix(&trees[place]).unwrap_or(&back).as_os_str().as_encoded_bytes())
        ))?;
        self.summary.push(("conflict", format!("{winner} won on all members, {took} after hq3 was back")));
        self.summary.push(("kept", format!("what {loser} wrote: {path} on {}, restored as {restored}", NAMES[place])));
        Ok(())
    }

    /// A small file with a plain name, where it stands since a directory was `moved`.
    async fn file_for_conflict(&mut self, tree: &Tree, moved: &(Vec<u8>, Vec<u8>)) -> Outcome<Vec<u8>> {
        let trees = self.stage.trees();
        let plain = |path: &Vec<u8>| std::str::from_utf8(path).is_ok_and(|text| !text.contains(char::is_control));
        let files = tree.small_files(usize::MAX);
        let found = files.iter().rev().map(|path| after_move(path, moved)).find(|path| plain(path));
        if let Some(within) = found.filter(|path| below(&trees[0], path).is_file()) {
            return Ok(within);
        }
        let within = b"plan.txt".to_vec();
        let (bytes, since) = append(&below(&trees[0], &within), "The plan.\n")?;
        self.arrive(&within, &bytes, &others(0), since).await?;
        Ok(within)
    }

    /// Which of the contents all members show.
    fn winner(&self, within: &[u8], written: &[Vec<u8>]) -> Outcome<usize> {
        let mut shows = Vec::new();
        for tree in self.stage.trees() {
            let path = below(&tree, within);
            let found = fs::read(&path)
                .map_err(|e| Failure::failed(format!("cannot read {}", path.display())).because(e.to_string()))?;
            shows.push(written.iter().position(|w| *w == found));
        }
        match shows.as_slice() {
            [Some(first), rest @ ..] if rest.iter().all(|s| *s == Some(*first)) => Ok(*first),
            _ => Err(Failure::failed(format!("the members do not agree on {}", shown(within)))
                .because(format!("{}: {shows:?}", NAMES.join(", ")))
                .into()),
        }
    }

    /// Where a losing content is kept: member, number and path of each item whose bytes these really are.
    async fn kept(&mut self, within: &[u8], bytes: &[u8]) -> Outcome<Vec<(usize, u64, String)>> {
        let mut kept = Vec::new();
        for (place, tree) in self.stage.trees().iter().enumerate() {
            let list = self.stage.ask_folder(place, "preserved.list", json!({})).await?;
            for item in list.as_array().into_iter().flatten() {
                let path = item["kept"].as_str().unwrap_or_default();
                let same = item["class"] == "unseen" && item["path"].as_str().is_some_and(|p| p.as_bytes() == within);
                if same && fs::read(tree.join(path)).is_ok_and(|found| found == bytes) {
                    kept.push((place, item["number"].as_u64().unwrap_or(0), path.to_owned()));
                }
            }
        }
        Ok(kept)
    }

    fn sum_up(&mut self, totals: Totals) -> Outcome<()> {
        self.say("\nSummary")?;
        self.summary.insert(0, ("equal", format!("{} are the same on all three members", words(totals))));
        for (name, text) in std::mem::take(&mut self.summary) {
            self.say(&format!("  {name:<9} {text}"))?;
        }
        Ok(())
    }
}

/// Where a path leads after a directory, with all in it, was moved from one path to another.
fn after_move(path: &[u8], (old, new): &(Vec<u8>, Vec<u8>)) -> Vec<u8> {
    match path.strip_prefix(old.as_slice()) {
        Some(rest) if rest.starts_with(b"/") => [new.as_slice(), rest].concat(),
        _ => path.to_vec(),
    }
}

/// Appends a line, or makes the file; its bytes now, and when it was closed.
fn append(path: &PathBuf, line: &str) -> Result<(Vec<u8>, Instant), Stop> {
    let write = || {
        let mut file = File::options().append(true).create(true).open(path)?;
        file.write_all(line.as_bytes())?;
        drop(file);
        let since = Instant::now();
        Ok((fs::read(path)?, since))
    };
    write().map_err(|e: std::io::Error| {
        Failure::failed(format!("cannot edit {}", shown(path.as_os_str().as_encoded_bytes())))
            .because(e.to_string())
            .into()
    })
}

fn words(totals: Totals) -> String {
    let Totals { files, links, directories, bytes: size } = totals;
    format!(
        "{} ({}), {}, {}",
        counted(files, "file", "files"),
        bytes(size),
        counted(directories, "directory", "directories"),
        counted(links, "link", "links")
    )
}

/// How far the copy is: files at each member, and how many come to the others in a second.
fn progress_line(there: [u64; 3], all: u64, elapsed: Duration) -> String {
    let parts: Vec<String> =
        NAMES.iter().zip(there).map(|(name, count)| format!("{name} {}/{}", grouped(count), grouped(all))).collect();
    let arrived = u128::from(there[1] + there[2]) * 1000 / elapsed.as_millis().max(1);
    let rate = grouped(u64::try_from(arrived).unwrap_or(u64::MAX));
    format!("  {}   {rate} files/s arrive, {}", parts.join("  "), span(elapsed))
}

/// What a change cost, from the traffic before and after it.
fn cost(before: (u64, Option<u64>), after: (u64, Option<u64>)) -> String {
    let content = after.0.saturating_sub(before.0);
    let content = if content == 0 {
        "no content was sent".to_owned()
    } else {
        format!("{} of content were sent", bytes(content))
    };
    match after.1.zip(before.1) {
        Some((after, before)) => format!("{content}, {} in all on the wire", bytes(after.saturating_sub(before))),
        None => content,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_files_at_each_member_and_the_rate() {
        let line = progress_line([5_000, 1_200, 800], 5_000, Duration::from_secs(4));
        assert_eq!(line, "  hq1 5,000/5,000  hq2 1,200/5,000  hq3 800/5,000   500 files/s arrive, 4.0 s");
        assert!(progress_line([0; 3], 0, Duration::ZERO).contains(" 0 files/s"));
    }

    #[test]
    fn a_cost_names_content_and_the_wire_where_it_is_known() {
        let cases = [
            ((5, None), (5, None), "no content was sent"),
            ((5, None), (2_005, None), "2.0 KB of content were sent"),
            ((5, Some(1)), (5, Some(3_001)), "no content was sent, 3.0 KB in all on the wire"),
            ((5, Some(1)), (5, None), "no content was sent"),
        ];
        for (before, after, want) in cases {
            assert_eq!(cost(before, after), want);
        }
    }

    #[test]
    fn an_append_gives_what_the_file_holds() {
        let path = std::env::temp_dir().join(format!("anabranch-test-append-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        assert_eq!(append(&path, "a\n").unwrap().0, b"a\n");
        assert_eq!(append(&path, "b\n").unwrap().0, b"a\nb\n");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_move_changes_only_what_is_inside() {
        let moved = (b"a/b".to_vec(), b"a/c".to_vec());
        for (path, want) in [("a/b/f", "a/c/f"), ("a/bc/f", "a/bc/f"), ("a/f", "a/f"), ("x/a/b/f", "x/a/b/f")] {
            assert_eq!(after_move(path.as_bytes(), &moved), want.as_bytes());
        }
    }

    #[test]
    fn the_others_are_the_two_that_remain() {
        assert_eq!([others(0), others(1), others(2)], [[1, 2], [0, 2], [0, 1]]);
    }
}
