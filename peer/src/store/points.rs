//! The points at which the store changes something on disk. To a program they are nothing; a test looks there at what a
//! crash would leave, or lets the change fail.

use std::{io, path::Path};

/// What is about to be done to a file, or to the names in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Make,
    Write,
    Sync,
    Rename,
    Delete,
    Punch,
    Commit,
}

/// Held while the change is being made.
#[derive(Debug)]
#[must_use]
pub(super) struct Point {
    #[cfg(test)]
    _alone: Option<parking_lot::MutexGuard<'static, ()>>,
}

/// To be called before each change, and its answer to be held until that is made.
#[cfg(not(test))]
pub(super) fn about_to(_: Change, _: &Path) -> io::Result<Point> {
    Ok(Point {})
}

#[cfg(test)]
pub(super) use self::hooks::{Hook, about_to};

#[cfg(test)]
mod hooks {
    use std::{path::PathBuf, sync::Arc};

    use parking_lot::Mutex;

    use super::*;

    type Said = dyn FnMut(Change) -> io::Result<()> + Send;

    /// Hears of every change below a directory before it is made, and may forbid it. No other is made meanwhile.
    pub(in crate::store) struct Hook(PathBuf);

    static HOOKS: Mutex<Vec<(PathBuf, Arc<Mutex<Said>>)>> = Mutex::new(Vec::new());
    static ALONE: Mutex<()> = Mutex::new(());

    impl Hook {
        pub(in crate::store) fn new(
            below: &Path,
            said: impl FnMut(Change) -> io::Result<()> + Send + 'static,
        ) -> Self {
            HOOKS.lock().push((below.to_owned(), Arc::new(Mutex::new(said))));
            Self(below.to_owned())
        }
    }

    impl Drop for Hook {
        fn drop(&mut self) {
            HOOKS.lock().retain(|(below, _)| *below != self.0);
        }
    }

    pub(in crate::store) fn about_to(change: Change, path: &Path) -> io::Result<Point> {
        let hook =
            HOOKS.lock().iter().find(|(below, _)| path.starts_with(below)).map(|(_, said)| said.clone());
        let Some(hook) = hook else { return Ok(Point { _alone: None }) };
        let alone = ALONE.lock();
        let said = hook.lock()(change);
        said.map(|()| Point { _alone: Some(alone) })
    }
}
