//! Schedulers, seed peers and peers.

use super::Db;
use crate::{
    instance::{Instance, Key, Kind},
    name::ClusterName,
    time::Time,
};
use sqlx::FromRow;
use std::time::Duration;

/// The most instances a cluster may have, so that nobody can fill the disk by registering under ever new ids.
const MAX_INSTANCES: i64 = 200_000;
/// The most schedulers or seed peers that are handed out; a longer list would help nobody.
const MAX_HANDED_OUT: i64 = 1000;

/// A registered instance, alive or not.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(crate) struct Registered {
    #[sqlx(flatten)]
    pub(crate) instance: Instance,
    pub(crate) last_seen: Time,
    pub(crate) alive_until: Time,
}

/// Which instances are asked for; `None` does not restrict.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) cluster: Option<ClusterName>,
    pub(crate) active: Option<bool>,
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    pub(crate) offset: u32,
    pub(crate) limit: u32,
}

/// How many instances of a kind a cluster has.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub(crate) struct Count {
    pub(crate) cluster: ClusterName,
    pub(crate) kind: Kind,
    pub(crate) active: i64,
    pub(crate) inactive: i64,
}

/// Why a keepalive was not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepAliveError {
    /// There is no such cluster.
    #[error("the cluster is not known")]
    UnknownCluster,
    /// The cluster has as many instances as it may have.
    #[error("the cluster has {MAX_INSTANCES} instances already")]
    Full,
    /// The database failed.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl Db {
    /// Registers the instance, or refreshes it; it is active for `lifetime` from now. Returns the version of its
    /// cluster's configuration.
    pub(crate) async fn keep_alive(
        &self,
        instance: &Instance,
        now: Time,
        lifetime: Duration,
    ) -> Result<u64, KeepAliveError> {
        let cluster = self.cluster(&instance.cluster).await?.ok_or(KeepAliveError::UnknownCluster)?;
        let done = sqlx::query(
            "INSERT INTO instances
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
             WHERE EXISTS (SELECT 1 FROM instances WHERE cluster = ?1 AND kind = ?2 AND id = ?3)
                OR (SELECT count(*) FROM instances WHERE cluster = ?1) < ?12
             ON CONFLICT (cluster, kind, id) DO UPDATE SET
                 name = excluded.name,
                 address = excluded.address,
                 version = excluded.version,
                 region = excluded.region,
                 zone = excluded.zone,
                 rack = excluded.rack,
                 last_seen = excluded.last_seen,
                 alive_until = excluded.alive_until",
        )
        .bind(&instance.cluster)
        .bind(instance.kind)
        .bind(&instance.id)
        .bind(&instance.name)
        .bind(&instance.address)
        .bind(&instance.version)
        .bind(&instance.region)
        .bind(&instance.zone)
        .bind(&instance.rack)
        .bind(now)
        .bind(now.after(lifetime))
        .bind(MAX_INSTANCES)
        .execute(&self.write)
        .await?;
        if done.rows_affected() == 0 { Err(KeepAliveError::Full) } else { Ok(cluster.config.version) }
    }

    /// Makes an instance inactive. Returns whether it was known.
    pub(crate) async fn leave(&self, key: &Key) -> sqlx::Result<bool> {
        let done =
            sqlx::query("UPDATE instances SET alive_until = 0 WHERE cluster = ? AND kind = ? AND id = ?")
                .bind(&key.cluster)
                .bind(key.kind)
                .bind(&key.id)
                .execute(&self.write)
                .await?;
        Ok(done.rows_affected() > 0)
    }

    /// The instances of a kind that are active in a cluster, by id.
    pub(crate) async fn active(
        &self,
        cluster: &ClusterName,
        kind: Kind,
        now: Time,
    ) -> sqlx::Result<Vec<Instance>> {
        sqlx::query_as(
            "SELECT * FROM instances
             WHERE cluster = ? AND kind = ? AND alive_until > ?
             ORDER BY id LIMIT ?",
        )
        .bind(cluster)
        .bind(kind)
        .bind(now)
        .bind(MAX_HANDED_OUT)
        .fetch_all(&self.read)
        .await
    }

    /// One page of the schedulers (or of the seed peers and peers) that the filter lets through, and how many it does
    /// in all.
    pub(crate) async fn registered(
        &self,
        schedulers: bool,
        filter: &Filter,
        page: Page,
        now: Time,
    ) -> sqlx::Result<(Vec<Registered>, i64)> {
        let mut snapshot = self.read.begin().await?;
        let total = sqlx::query_scalar(
            "SELECT count(*) FROM instances
             WHERE (kind = 'scheduler') = ?1 AND cluster = ifnull(?2, cluster)
               AND (?3 IS NULL OR (alive_until > ?4) = ?3)",
        )
        .bind(schedulers)
        .bind(&filter.cluster)
        .bind(filter.active)
        .bind(now)
        .fetch_one(&mut *snapshot)
        .await?;
        let rows = sqlx::query_as(
            "SELECT * FROM instances
             WHERE (kind = 'scheduler') = ?1 AND cluster = ifnull(?2, cluster)
               AND (?3 IS NULL OR (alive_until > ?4) = ?3)
             ORDER BY cluster, kind, id LIMIT ?5 OFFSET ?6",
        )
        .bind(schedulers)
        .bind(&filter.cluster)
        .bind(filter.active)
        .bind(now)
        .bind(page.limit)
        .bind(page.offset)
        .fetch_all(&mut *snapshot)
        .await?;
        Ok((rows, total))
    }

    /// How many instances there are of each kind in each cluster; kinds without any are left out.
    pub(crate) async fn counts(&self, now: Time) -> sqlx::Result<Vec<Count>> {
        sqlx::query_as(
            "SELECT cluster, kind, sum(alive_until > ?1) AS active, sum(alive_until <= ?1) AS inactive
             FROM instances GROUP BY cluster, kind",
        )
        .bind(now)
        .fetch_all(&self.read)
        .await
    }

    /// Forgets the inactive instances that were last seen before `oldest`. Returns how many these were.
    pub(crate) async fn forget(&self, oldest: Time, now: Time) -> sqlx::Result<u64> {
        let done = sqlx::query("DELETE FROM instances WHERE last_seen < ? AND alive_until <= ?")
            .bind(oldest)
            .bind(now)
            .execute(&self.write)
            .await?;
        Ok(done.rows_affected())
    }
}
