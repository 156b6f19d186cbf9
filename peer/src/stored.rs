//! Complete contents as files, for whoever can send them without reading them.

use std::{fs::File, ops::Range, sync::Arc};

use crate::{
    TaskError,
    content::blocking,
    metrics::PeerMetrics,
    store::{Entry, Pin, StoreError},
    transfer::warm,
};

/// A content that is here completely and was checked as a whole, and the file that it lies in. It is kept from eviction
/// while this lives.
#[derive(Debug)]
pub struct StoredFile {
    entry: Arc<Entry>,
    file: Arc<File>,
    metrics: PeerMetrics,
    _pin: Pin,
}

impl StoredFile {
    pub(crate) fn open(entry: Arc<Entry>, metrics: PeerMetrics) -> Result<Self, StoreError> {
        let (pin, file) = (entry.pin(), entry.file()?);
        Ok(Self { entry, file, metrics, _pin: pin })
    }

    /// The file. Its bytes are the content's once [`Self::check`] said so.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Length of the content in bytes.
    pub fn len(&self) -> u64 {
        self.entry.geometry().len()
    }

    /// Whether the content has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes sure that the file's bytes in `range` are the right ones and can be read without waiting for the disk, and
    /// counts them as served.
    ///
    /// # Errors
    /// [`TaskError::Local`] if the disk has lost or changed them.
    pub async fn check(&self, range: Range<u64>) -> Result<(), TaskError> {
        let geometry = self.entry.geometry();
        let (first, last) = (geometry.leaf_at(range.start), geometry.leaf_at(range.end.saturating_sub(1)));
        let (Some(first), Some(last)) = (first, last) else {
            return Err(TaskError::Local(format!("{} has no bytes {range:?}", self.entry.id())));
        };
        if self.entry.is_checked(first..last + 1) {
            let warm = warm(&self.file, range.start, range.end - range.start).await;
            warm.map_err(|error| TaskError::Local(error.to_string()))?;
        } else {
            let entry = self.entry.clone();
            blocking(move || (first..=last).try_for_each(|leaf| entry.check_leaf(leaf))).await?;
        }
        self.metrics.received(crate::content::From::Local, range.end - range.start);
        Ok(())
    }
}
