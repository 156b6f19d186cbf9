//! Which parts of a service are ready, and why the others are not.

use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// The state of the parts of a service; all clones show the same.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>,
}

impl Readiness {
    /// A service with these parts, none of them ready yet.
    pub fn new(parts: impl IntoIterator<Item = &'static str>) -> Self {
        let parts = parts.into_iter().map(|part| (part, Err("starting".into()))).collect();
        Self { parts: Arc::new(Mutex::new(parts)) }
    }

    /// Says that a part is ready (`Ok`), or why it is not.
    pub fn set(&self, part: &'static str, state: Result<(), String>) {
        self.parts.lock().insert(part, state);
    }

    /// The parts that are not ready, with their reasons; empty if the service is ready.
    pub fn reasons(&self) -> Vec<(&'static str, String)> {
        let parts = self.parts.lock();
        parts.iter().filter_map(|(part, state)| Some((*part, state.as_ref().err()?.clone()))).collect()
    }
}
