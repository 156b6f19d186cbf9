//! The database: one SQLite file, in WAL mode, brought up to date by migrations when it is opened.
//!
//! There is one connection that writes, so that writers queue in order and never see `SQLITE_BUSY` from each other,
//! and a few that read. A power cut may undo the last moments (`synchronous = NORMAL`) but never tears the file;
//! what is lost are keepalives, and the next ones are on their way.

mod clusters;
mod instances;
mod open;
#[cfg(test)]
mod tests;

pub(crate) use clusters::Cluster;
pub(crate) use instances::{Count, Filter, KeepAliveError, Page, Registered};
pub use open::OpenError;

use crate::time::Time;
use sqlx::SqlitePool;
use std::time::Duration;

/// The manager's database; all clones use the same connections.
#[derive(Debug, Clone)]
pub(crate) struct Db {
    read: SqlitePool,
    write: SqlitePool,
}

impl Db {
    /// Notes that a manager is at work, and moves times that lie too far ahead (after the clock was set back) to where
    /// a keepalive of this moment would put them.
    pub(crate) async fn mark_alive(&self, now: Time, lifetime: Duration) -> sqlx::Result<()> {
        let mut transaction = self.write.begin().await?;
        sqlx::query("UPDATE manager SET alive_at = ?").bind(now).execute(&mut *transaction).await?;
        sqlx::query("UPDATE instances SET alive_until = ?1 WHERE alive_until > ?1")
            .bind(now.after(lifetime))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    }

    /// Gives every instance that was active when the last manager stopped a full lifetime to be heard again.
    pub(crate) async fn forgive_absence(&self, now: Time, lifetime: Duration) -> sqlx::Result<()> {
        sqlx::query(
            "UPDATE instances SET alive_until = ?
             WHERE alive_until > (SELECT alive_at FROM manager)",
        )
        .bind(now.after(lifetime))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Closes the file; other clones cannot use it after that.
    pub(crate) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}
