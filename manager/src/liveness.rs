//! The regular work on the database: noting that a manager is there, forgetting the long dead, counting the rest.
//!
//! An instance becomes inactive by the passing of time alone, so nothing here decides about it.

use crate::{config::KeepAlive, db::Db, metrics::Metrics, time::Time};
use darter_service::admin::Readiness;
use tokio::time::{Duration, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The part of the service that is ready when a round has succeeded.
pub(crate) const READY_PART: &str = "database";
/// How long one round may take.
const ROUND_DEADLINE: Duration = Duration::from_secs(10);

/// Does a round every keepalive interval until shutdown.
pub(crate) async fn run(
    db: Db,
    config: KeepAlive,
    metrics: Metrics,
    ready: Readiness,
    shutdown: CancellationToken,
) {
    loop {
        let state = match timeout(ROUND_DEADLINE, round(&db, &config, &metrics, Time::now())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("it does not answer in time".into()),
        };
        if let Err(reason) = &state {
            warn!(reason, "the database fails");
        }
        ready.set(READY_PART, state);
        if shutdown.run_until_cancelled(sleep(config.interval)).await.is_none() {
            return;
        }
    }
}

async fn round(db: &Db, config: &KeepAlive, metrics: &Metrics, now: Time) -> sqlx::Result<()> {
    db.mark_alive(now, config.lifetime()).await?;
    let forgotten = db.forget(now.before(config.forget_after), now).await?;
    if forgotten > 0 {
        info!(forgotten, "forgot instances that had been inactive for long");
    }
    metrics.show_instances(&db.clusters().await?, &db.counts(now).await?);
    Ok(())
}
