//! Clusters and their dynamic configuration.

use super::Db;
use crate::{config, name::ClusterName, time::Time};
use darter_proto::manager::DynamicConfig;
use sqlx::{FromRow, Row, sqlite::SqliteRow};

/// A cluster as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    pub(crate) config: DynamicConfig,
}

impl Db {
    /// Makes a cluster without limits if there is none of that name.
    pub(crate) async fn ensure_cluster(&self, name: &ClusterName, now: Time) -> sqlx::Result<()> {
        sqlx::query(
            "INSERT INTO clusters VALUES (?, ?, 0, 0, 0, 0, 0, 0)
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(name)
        .bind(now)
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Gives a cluster these values, and makes it if it is new. Returns whether anything has changed; then it has a
    /// new version: the time of the change, which also differs after the database was made anew, and always a larger
    /// one than before.
    pub(crate) async fn set_cluster(
        &self,
        name: &ClusterName,
        values: &config::Cluster,
        now: Time,
    ) -> sqlx::Result<bool> {
        let done = sqlx::query(
            "INSERT INTO clusters VALUES (?, ?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (name) DO UPDATE SET
                 config_version = max(config_version + 1, excluded.config_version),
                 parents_per_child = excluded.parents_per_child,
                 children_per_parent = excluded.children_per_parent,
                 download_bytes_per_second = excluded.download_bytes_per_second,
                 upload_bytes_per_second = excluded.upload_bytes_per_second,
                 origin_bytes_per_second = excluded.origin_bytes_per_second,
                 prefetch_bytes_per_second = excluded.prefetch_bytes_per_second
             WHERE (parents_per_child, children_per_parent, download_bytes_per_second,
                    upload_bytes_per_second, origin_bytes_per_second, prefetch_bytes_per_second)
                IS NOT (excluded.parents_per_child, excluded.children_per_parent, excluded.download_bytes_per_second,
                    excluded.upload_bytes_per_second, excluded.origin_bytes_per_second,
                    excluded.prefetch_bytes_per_second)",
        )
        .bind(name)
        .bind(now)
        .bind(values.parents_per_child)
        .bind(values.children_per_parent)
        .bind(stored(values.download_bytes_per_second))
        .bind(stored(values.upload_bytes_per_second))
        .bind(stored(values.origin_bytes_per_second))
        .bind(stored(values.prefetch_bytes_per_second))
        .execute(&self.write)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    pub(crate) async fn cluster(&self, name: &ClusterName) -> sqlx::Result<Option<Cluster>> {
        sqlx::query_as("SELECT * FROM clusters WHERE name = ?").bind(name).fetch_optional(&self.read).await
    }

    /// All clusters by name. There are as many as the configuration names.
    pub(crate) async fn clusters(&self) -> sqlx::Result<Vec<Cluster>> {
        sqlx::query_as("SELECT * FROM clusters ORDER BY name").fetch_all(&self.read).await
    }
}

impl FromRow<'_, SqliteRow> for Cluster {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let number = |column: &'static str| -> sqlx::Result<u64> {
            let value: i64 = row.try_get(column)?;
            value
                .try_into()
                .map_err(|error| sqlx::Error::ColumnDecode { index: column.into(), source: Box::new(error) })
        };
        let config = DynamicConfig {
            version: number("config_version")?,
            parents_per_child: row.try_get("parents_per_child")?,
            children_per_parent: row.try_get("children_per_parent")?,
            download_bytes_per_second: number("download_bytes_per_second")?,
            upload_bytes_per_second: number("upload_bytes_per_second")?,
            origin_bytes_per_second: number("origin_bytes_per_second")?,
            prefetch_bytes_per_second: number("prefetch_bytes_per_second")?,
        };
        Ok(Self { name: row.try_get("name")?, config })
    }
}

/// The configuration has refused rates beyond SQLite's integers.
fn stored(rate: u64) -> i64 {
    rate.try_into().unwrap_or(i64::MAX)
}
