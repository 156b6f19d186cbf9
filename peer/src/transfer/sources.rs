//! The tasks of which this host is the source.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{Site, TaskId};

/// Tasks that are read from the origin here, or that this host serves as a seed peer. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    seed: Arc<AtomicBool>,
    site: Site,
    reading: Arc<Mutex<HashMap<TaskId, usize>>>,
}

/// While this lives, a task is read from the origin here.
#[derive(Debug)]
pub struct Reading {
    sources: Sources,
    task: TaskId,
}

impl Sources {
    /// No task is read yet; a seed peer is the source of all that it serves. What is new goes to children near `site`
    /// first.
    pub fn new(seed: bool, site: Site) -> Self {
        Self { seed: Arc::new(AtomicBool::new(seed)), site, reading: Arc::default() }
    }

    /// Where this host stands.
    pub(super) fn site(&self) -> Site {
        self.site
    }

    /// This host becomes a seed peer, or an ordinary one; that holds for children that come from now on.
    pub(crate) fn set_seed(&self, seed: bool) {
        self.seed.store(seed, Ordering::Relaxed);
    }

    /// This host begins to read a task from the origin.
    pub fn reads(&self, task: &TaskId) -> Reading {
        *self.reading.lock().entry(task.clone()).or_default() += 1;
        Reading { sources: self.clone(), task: task.clone() }
    }

    /// Whether this host is the source of a task.
    pub(super) fn contains(&self, task: &TaskId) -> bool {
        self.seed.load(Ordering::Relaxed) || self.reading.lock().contains_key(task)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut reading = self.sources.reading.lock();
        if let Some(readers) = reading.get_mut(&self.task) {
            *readers -= 1;
            if *readers == 0 {
                reading.remove(&self.task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_source_of_what_it_reads_and_as_a_seed_of_everything() {
        let sources = Sources::new(false, Site::default());
        let [read, other] = ["url:1", "url:2"].map(|task| TaskId::parse(task).unwrap());
        let readings = [sources.reads(&read), sources.reads(&read)];
        assert!(sources.contains(&read) && !sources.contains(&other));
        let in_the_server = sources.clone();
        sources.set_seed(true);
        assert!(in_the_server.contains(&other));
        sources.set_seed(false);
        let [first, last] = readings;
        drop(first);
        assert!(in_the_server.contains(&read));
        drop(last);
        assert!(!in_the_server.contains(&read));
    }
}
