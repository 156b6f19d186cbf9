//! Waiting until something is so.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{sleep, timeout};

/// What is not so after this time will never be.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Waits until `so` says so; `what` completes "not yet".
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) -> Result<()> {
    let waiting = async {
        while !so().await {
            sleep(POLL).await;
        }
    };
    timeout(DEADLINE, waiting).await.with_context(|| format!("not yet {what} after {DEADLINE:?}"))
}
