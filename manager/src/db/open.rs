//! Opening the file: settings, a check for damage, migrations.

use super::Db;
use sqlx::{
    SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Connections that read.
const READERS: u32 = 4;
/// How long a statement waits for another process that has the file locked, as a backup does.
const BUSY_DEADLINE: Duration = Duration::from_secs(2);
/// How long a query waits for its turn.
const TURN_DEADLINE: Duration = Duration::from_secs(3);

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory does not exist and cannot be made.
    #[error("cannot make the directory {} for the database: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be opened or written.
    #[error("cannot open the database {}: {source}; is it, and its directory, writable for this user?", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// The file is not a database, or damaged.
    #[error(
        "the database {} is damaged or not an SQLite file ({reason}); put a backup in its place, or move it away: \
         a new one is made, and schedulers and peers register again by themselves", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        reason: String,
    },
    /// A newer Darter has changed the tables.
    #[error("the database {} was written by a newer version of Darter; use that one, or a backup", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
    },
    /// The tables cannot be brought up to date.
    #[error("cannot migrate the database {}: {source}", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// What failed.
        source: MigrateError,
    },
}

impl Db {
    /// Opens the file, makes it if it is missing, checks it, and migrates it.
    pub(crate) async fn open(path: &Path) -> Result<Self, OpenError> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .map_err(|source| OpenError::Directory { path: directory.into(), source })?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(BUSY_DEADLINE);
        let pool = |size| SqlitePoolOptions::new().max_connections(size).acquire_timeout(TURN_DEADLINE);
        let write = pool(1).connect_with(options.clone()).await.map_err(|error| failed(path, error))?;
        check(path, &write).await?;
        MIGRATIONS.run(&write).await.map_err(|error| not_migrated(path, error))?;
        let read = pool(READERS).connect_lazy_with(options.read_only(true));
        Ok(Self { read, write })
    }
}

/// Reads every page once; the file is small.
async fn check(path: &Path, pool: &SqlitePool) -> Result<(), OpenError> {
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(pool)
        .await
        .map_err(|error| failed(path, error))?;
    if verdict == "ok" { Ok(()) } else { Err(OpenError::Damaged { path: path.into(), reason: verdict }) }
}

fn failed(path: &Path, error: sqlx::Error) -> OpenError {
    match error.as_database_error() {
        Some(reason) if is_damage(reason.code().as_deref()) => {
            OpenError::Damaged { path: path.into(), reason: reason.message().into() }
        }
        _ => OpenError::Open { path: path.into(), source: error },
    }
}

/// SQLITE_CORRUPT or SQLITE_NOTADB; the low byte of an extended code is the primary one
/// (<https://www.sqlite.org/rescode.html>).
fn is_damage(code: Option<&str>) -> bool {
    let code: Option<u32> = code.and_then(|code| code.parse().ok());
    code.is_some_and(|code| matches!(code & 0xff, 11 | 26))
}

fn not_migrated(path: &Path, error: MigrateError) -> OpenError {
    match error {
        MigrateError::VersionMissing(_) => OpenError::Newer { path: path.into() },
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => failed(path, error),
        source => OpenError::Migrate { path: path.into(), source },
    }
}
