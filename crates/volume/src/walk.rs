//! The scanner's legs: enumerates directories and looks at all that is in them, on several threads.
//!
//! A directory's answer is whole or an error, never a part: a name that is missing from it is absent. Answers come in
//! the order of the questions, whatever thread was first; with a parallelism of 1 (the simulator) no thread is started.

use std::io;
use std::sync::Mutex;

use crate::fs::{Entry, Fs, Stat};

/// Entries that one thread takes at a time.
const CHUNK: usize = 1024;

/// All that is in a directory.
pub type Listing = Vec<(Entry, Stat)>;

/// Enumerates each directory and looks at its entries. Keys are the caller's and come back beside the answers, in the
/// order given.
///
/// # Errors
/// Per directory: enumeration failed, or looking at one of the entries did (but for one that vanished meanwhile, which
/// is left out). Nothing may be concluded then from what a directory does not show.
pub fn scan_directories<F>(fs: &F, dirs: Vec<(u64, F::Dir)>) -> Vec<(u64, io::Result<Listing>)>
where
    F: Fs + Sync,
    F::Dir: Send,
{
    let threads = fs.parallelism().max(1);
    // Few directories: share out the entries of each.
    let within = if dirs.len() < threads { threads } else { 1 };
    let scan = |(key, dir): (u64, F::Dir)| {
        let listing = fs.list(&dir).and_then(|entries| stat_all(fs, &dir, entries, within));
        (key, listing)
    };
    if within > 1 { dirs.into_iter().map(scan).collect() } else { share_out(dirs, threads, scan) }
}

/// Looks at entries of one directory, leaving out those that vanished since they were enumerated.
///
/// # Errors
/// The first error that any entry gives.
pub fn stat_all<F>(fs: &F, dir: &F::Dir, entries: Vec<Entry>, threads: usize) -> io::Result<Listing>
where
    F: Fs + Sync,
    F::Dir: Send,
{
    let look = |(dir, entries): (F::Dir, Vec<Entry>)| -> io::Result<Listing> {
        let mut listing = Vec::with_capacity(entries.len());
        for entry in entries {
            if let Some(stat) = fs.stat(&dir, &entry.name)? {
                listing.push((entry, stat));
            }
        }
        Ok(listing)
    };
    if threads <= 1 || entries.len() <= CHUNK {
        return look((dir.clone(), entries));
    }
    let mut chunks = Vec::with_capacity(entries.len() / CHUNK + 1);
    let mut entries = entries.into_iter().peekable();
    while entries.peek().is_some() {
        chunks.push((dir.clone(), entries.by_ref().take(CHUNK).collect()));
    }
    let mut all = Vec::new();
    for listing in share_out(chunks, threads, look) {
        all.append(&mut listing?);
    }
    Ok(all)
}

/// Does the work on at most `threads` threads; answers in the order of the work. With one, no thread is started.
pub fn share_out<W: Send, A: Send>(work: Vec<W>, threads: usize, act: impl Fn(W) -> A + Sync) -> Vec<A> {
    let threads = threads.min(work.len());
    if threads <= 1 {
        return work.into_iter().map(act).collect();
    }
    let left = Mutex::new(work.into_iter().enumerate());
    let answers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let take = || left.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                let mut own = Vec::new();
                while let Some((place, work)) = take() {
                    own.push((place, act(work)));
                }
                answers.lock().unwrap_or_else(std::sync::PoisonError::into_inner).append(&mut own);
            });
        }
    });
    let mut answers = answers.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    answers.sort_unstable_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::LinuxFs;

    #[test]
    fn answers_are_whole_and_in_the_order_asked() {
        let folder = tempfile::tempdir().unwrap();
        let fs = LinuxFs::open(folder.path()).unwrap();
        let mut dirs = Vec::new();
        for key in 0..40u64 {
            let name = format!("dir{key}");
            fs.create_dir(&fs.root(), name.as_bytes()).unwrap();
            let dir = fs.open_dir(&fs.root(), name.as_bytes()).unwrap();
            for file in 0..key {
                drop(fs.create_file(&dir, format!("{file}").as_bytes()).unwrap());
            }
            dirs.push((key, dir));
        }
        // One is gone: it fails, and says nothing of the others.
        fs.remove_dir(&fs.root(), b"dir0").unwrap();
        let answers = scan_directories(&fs, dirs);
        assert_eq!(answers.iter().map(|(key, _)| *key).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>());
        for (key, listing) in answers {
            match listing {
                Ok(listing) => assert_eq!(listing.len() as u64, key),
                Err(_) => assert_eq!(key, 0),
            }
        }
    }

    #[test]
    fn a_large_directory_is_shared_out_and_vanished_entries_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let fs = LinuxFs::open(folder.path()).unwrap();
        for file in 0..3 * CHUNK + 5 {
            std::fs::write(folder.path().join(file.to_string()), b"").unwrap();
        }
        let entries = fs.list(&fs.root()).unwrap();
        let names: Vec<_> = entries.iter().map(|e| e.name.clone()).collect();
        std::fs::remove_file(folder.path().join("7")).unwrap();
        let listing = stat_all(&fs, &fs.root(), entries, 4).unwrap();
        let seen: Vec<_> = listing.iter().map(|(e, _)| e.name.clone()).collect();
        let expected: Vec<_> = names.into_iter().filter(|n| n != b"7").collect();
        assert_eq!(seen, expected);
        let mut scanned = scan_directories(&fs, vec![(9, fs.root())]);
        assert_eq!(scanned.pop().unwrap().1.unwrap().len(), 3 * CHUNK + 4);
    }
}
