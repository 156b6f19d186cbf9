//! The tasks of which this host is the source.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::TaskId;

/// Tasks that are read from the origin here, or that this host serves as a seed peer. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    seed: bool,
    reading: Arc<Mutex<HashMap<TaskId, usize>>>,
}

/// While this lives, a task is read from the origin here.
#[derive(Debug)]
pub struct Reading {
    sources: Sources,
    task: TaskId,
}

impl Sources {
    /// No task is read yet; a seed peer is the source of all that it serves.
    pub fn new(seed: bool) -> Self {
        Self { seed, reading: Arc::default() }
    }

    /// This host begins to read a task from the origin.
    pub fn reads(&self, task: &TaskId) -> Reading {
        *self.reading.lock().entry(task.clone()).or_default() += 1;
        Reading { sources: self.clone(), task: task.clone() }
    }

    /// Whether this host is the source of a task.
    pub(super) fn contains(&self, task: &TaskId) -> bool {
        self.seed || self.reading.lock().contains_key(task)
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
