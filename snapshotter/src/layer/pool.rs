//! The threads that compress leaves, shared by all layers that are being made.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
};

use parking_lot::Mutex;

use super::leaf::{EncodedLeaf, Encoder};

/// Compressing threads. They end with it.
pub(super) struct Pool {
    /// Taken away to end the threads.
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

/// The threads have ended.
#[derive(Debug)]
pub(super) struct Ended;

struct Job {
    raw: Vec<u8>,
    done: SyncSender<io::Result<EncodedLeaf>>,
}

impl Pool {
    pub(super) fn start(workers: usize) -> io::Result<Self> {
        let (jobs, waiting) = sync_channel(workers);
        let waiting = Arc::new(Mutex::new(waiting));
        let mut pool = Self { jobs: Some(jobs), threads: Vec::new() };
        for _ in 0..workers {
            let waiting = waiting.clone();
            let mut encoder = Encoder::new()?;
            let thread = Builder::new().name("layer-compress".into());
            pool.threads.push(thread.spawn(move || compress(&waiting, &mut encoder))?);
        }
        Ok(pool)
    }

    pub(super) fn workers(&self) -> usize {
        self.threads.len()
    }

    /// Has a leaf encoded and sent to `done`, which must have room for it; waits while all threads are busy.
    pub(super) fn encode(
        &self,
        raw: Vec<u8>,
        done: SyncSender<io::Result<EncodedLeaf>>,
    ) -> Result<(), Ended> {
        self.jobs.as_ref().ok_or(Ended)?.send(Job { raw, done }).map_err(|_| Ended)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // One that panicked has said so, and its layer has failed.
            thread.join().ok();
        }
    }
}

fn compress(jobs: &Mutex<Receiver<Job>>, encoder: &mut Encoder) {
    loop {
        let job = jobs.lock().recv();
        let Ok(Job { raw, done }) = job else { return };
        // A layer that has failed meanwhile does not want its leaf any more; others do.
        done.send(encoder.encode(raw)).ok();
    }
}
