//! Work beside the folder's thread: what only calls the file system, and need not be over before more is decided.
//!
//! Owns a few threads that live as long as the replica. Where the file system bears no parallelism, as in the simulator,
//! there are none, and work is done at once by whoever asks for it: so a history is the same each time. Must never touch
//! the records, and never decide anything.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. Dropped, it waits until they have done what they were given: nobody who opens the folder after that meets
/// any of it.
#[derive(Default)]
pub(crate) struct Beside {
    jobs: Option<mpsc::Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Who had asked has been told by the missing answer.
            let _ = thread.join();
        }
    }
}

/// What comes of a piece of work.
pub(crate) enum Outcome<T> {
    Here(T),
    Coming(mpsc::Receiver<T>),
}

impl<T> Outcome<T> {
    /// Waits for it. `None`: its thread panicked.
    pub(crate) fn wait(self) -> Option<T> {
        match self {
            Self::Here(value) => Some(value),
            Self::Coming(receiver) => receiver.recv().ok(),
        }
    }

    /// Takes it if it is there: as [`Self::wait`] gives it. `Err`: it is still to come.
    pub(crate) fn take(self) -> Result<Option<T>, Self> {
        match self {
            Self::Here(value) => Ok(Some(value)),
            Self::Coming(receiver) => match receiver.try_recv() {
                Ok(value) => Ok(Some(value)),
                Err(mpsc::TryRecvError::Disconnected) => Ok(None),
                Err(mpsc::TryRecvError::Empty) => Err(Self::Coming(receiver)),
            },
        }
    }
}

impl Beside {
    /// Starts threads for so much parallelism, and one more, since one may wait for the disk; with a parallelism of one, none.
    pub(crate) fn start(parallelism: usize) -> Self {
        if parallelism <= 1 {
            return Self::default();
        }
        let (sender, receiver) = mpsc::channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let start = |_| {
            let jobs = Arc::clone(&receiver);
            let body = move || {
                loop {
                    // One of them waits for the next job, the others for their turn to wait.
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    // A job that panics gives no answer, and the next one is done all the same.
                    drop(catch_unwind(AssertUnwindSafe(job)));
                }
            };
            std::thread::Builder::new().name("beside".into()).spawn(body).ok()
        };
        let threads: Vec<_> = (0..=parallelism).filter_map(start).collect();
        // Without threads all is done by whoever asks: slower, and no less right.
        Self { jobs: (!threads.is_empty()).then_some(sender), threads }
    }

    /// Has something done; its outcome is waited for later.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        let Some(sender) = &self.jobs else { return Outcome::Here(work()) };
        let (answer, answered) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            // Whoever asked may not want to know any more.
            let _ = answer.send(work());
        });
        // The threads live as long as the sender.
        if let Err(mpsc::SendError(job)) = sender.send(job) {
            job();
        }
        Outcome::Coming(answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_with_and_without_threads_and_a_panic_is_no_answer() {
        for threads in [0, 1, 3] {
            let beside = Beside::start(threads);
            let outcomes: Vec<_> = (0..100).map(|at| beside.run(move || at * 2)).collect();
            let values: Vec<_> = outcomes.into_iter().map(|outcome| outcome.wait().unwrap()).collect();
            assert_eq!(values, (0..100).map(|at| at * 2).collect::<Vec<_>>(), "{threads} threads");
        }
        let beside = Beside::start(2);
        for _ in 0..5 {
            assert_eq!(beside.run(|| panic!("as it should")).wait(), None::<()>);
        }
        assert_eq!(beside.run(|| 7).wait(), Some(7), "they go on");
    }

    #[test]
    fn what_is_not_done_yet_stays_to_be_taken() {
        let (go, gate) = mpsc::channel::<()>();
        let beside = Beside::start(2);
        let held_up = beside.run(move || gate.recv().is_ok());
        let Err(coming) = held_up.take() else { panic!("it is done before it could be") };
        go.send(()).unwrap();
        assert_eq!(coming.wait(), Some(true));
        assert_eq!(Beside::start(1).run(|| 7).take().ok(), Some(Some(7)), "done at once where there are no threads");
    }
}
