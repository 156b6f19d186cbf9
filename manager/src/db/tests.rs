use super::*;
use crate::{
    config,
    instance::{Instance, Key, Kind},
    name::ClusterName,
};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

const LIFETIME: Duration = Duration::from_secs(15);

struct File {
    dir: TempDir,
}

impl File {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("made/manager.db")
    }

    async fn open(&self) -> Db {
        let db = Db::open(&self.path()).await.unwrap();
        db.ensure_cluster(&ClusterName::default(), Time::now()).await.unwrap();
        db
    }
}

fn instance(kind: Kind, id: &str) -> Instance {
    Instance {
        cluster: ClusterName::default(),
        kind,
        id: id.into(),
        name: id.into(),
        address: "10.0.0.1:7430".into(),
        version: "0.1.0".into(),
        region: "eu".into(),
        zone: "a".into(),
        rack: String::new(),
    }
}

fn key(instance: &Instance) -> Key {
    Key { cluster: instance.cluster.clone(), kind: instance.kind, id: instance.id.clone() }
}

async fn active_ids(db: &Db, kind: Kind, now: Time) -> Vec<String> {
    let active = db.active(&ClusterName::default(), kind, now).await.unwrap();
    active.into_iter().map(|instance| instance.id).collect()
}

#[tokio::test]
async fn a_fresh_file_is_migrated_and_an_existing_one_keeps_its_rows() {
    let (file, now) = (File::new(), Time::now());
    let db = file.open().await;
    let scheduler = instance(Kind::Scheduler, "s1");
    db.keep_alive(&scheduler, now, LIFETIME).await.unwrap();
    db.close().await;

    let db = file.open().await;
    assert_eq!(db.active(&scheduler.cluster, Kind::Scheduler, now).await.unwrap(), [scheduler]);
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&db.read).await.unwrap();
    assert_eq!(mode, "wal");
    db.close().await;
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_left_alone() {
    let file = File::new();
    let db = file.open().await;
    sqlx::query("UPDATE _sqlx_migrations SET version = 9999").execute(&db.write).await.unwrap();
    db.close().await;
    let error = Db::open(&file.path()).await.unwrap_err();
    assert!(matches!(error, OpenError::Newer { .. }), "{error}");
}

#[tokio::test]
async fn what_is_not_a_database_is_named_and_left_alone() {
    let file = File::new();
    fs::create_dir_all(file.path().parent().unwrap()).unwrap();
    let text = "not a database, ".repeat(1000);
    fs::write(file.path(), &text).unwrap();
    let error = Db::open(&file.path()).await.unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("manager.db is damaged or not an SQLite file"), "{error}");
    assert_eq!(fs::read_to_string(file.path()).unwrap(), text);
}

#[tokio::test]
async fn a_damaged_page_is_found_when_the_file_is_opened() {
    let file = File::new();
    file.open().await.close().await;
    let mut bytes = fs::read(file.path()).unwrap();
    assert!(bytes.len() > 3 * 4096);
    bytes[4096..].fill(0xa5);
    fs::write(file.path(), bytes).unwrap();
    let error = Db::open(&file.path()).await.unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_path_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "").unwrap();
    let error = Db::open(&plain.join("below/manager.db")).await.unwrap_err();
    assert!(matches!(error, OpenError::Directory { .. }), "{error}");
    let error = Db::open(dir.path()).await.unwrap_err();
    assert!(matches!(error, OpenError::Open { .. }), "{error}");
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
}

#[tokio::test]
async fn an_instance_is_active_for_its_lifetime() {
    let (file, now) = (File::new(), Time::now());
    let db = file.open().await;
    db.keep_alive(&instance(Kind::Scheduler, "s1"), now, LIFETIME).await.unwrap();
    db.keep_alive(&instance(Kind::Seed, "p1"), now, LIFETIME).await.unwrap();
    let at = |seconds| now.after(Duration::from_secs(seconds));
    assert_eq!(active_ids(&db, Kind::Scheduler, at(14)).await, ["s1"]);
    assert_eq!(active_ids(&db, Kind::Scheduler, at(15)).await, [""; 0]);
    db.keep_alive(&instance(Kind::Scheduler, "s1"), at(60), LIFETIME).await.unwrap();
    assert_eq!(active_ids(&db, Kind::Scheduler, at(61)).await, ["s1"]);
    assert_eq!(active_ids(&db, Kind::Seed, at(61)).await, [""; 0]);
    db.close().await;
}

#[tokio::test]
async fn one_that_leaves_is_inactive_at_once_and_may_come_back() {
    let (file, now) = (File::new(), Time::now());
    let db = file.open().await;
    let seed = instance(Kind::Seed, "p1");
    assert!(!db.leave(&key(&seed)).await.unwrap());
    db.keep_alive(&seed, now, LIFETIME).await.unwrap();
    assert!(db.leave(&key(&seed)).await.unwrap());
    assert_eq!(active_ids(&db, Kind::Seed, now).await, [""; 0]);
    db.forgive_absence(now, LIFETIME).await.unwrap();
    assert_eq!(active_ids(&db, Kind::Seed, now).await, [""; 0]);
    db.keep_alive(&seed, now, LIFETIME).await.unwrap();
    assert_eq!(active_ids(&db, Kind::Seed, now).await, ["p1"]);
    db.close().await;
}

#[tokio::test]
async fn the_absence_of_the_manager_is_not_held_against_the_instances() {
    let (file, start) = (File::new(), Time::now());
    let at = |seconds| start.after(Duration::from_secs(seconds));
    let db = file.open().await;
    db.keep_alive(&instance(Kind::Seed, "died-before"), at(0), LIFETIME).await.unwrap();
    db.keep_alive(&instance(Kind::Seed, "alive"), at(98), LIFETIME).await.unwrap();
    db.mark_alive(at(100), LIFETIME).await.unwrap();
    db.close().await;

    // An hour later.
    let db = file.open().await;
    db.forgive_absence(at(3700), LIFETIME).await.unwrap();
    assert_eq!(active_ids(&db, Kind::Seed, at(3710)).await, ["alive"]);
    assert_eq!(active_ids(&db, Kind::Seed, at(3715)).await, [""; 0]);
    db.close().await;
}

#[tokio::test]
async fn a_clock_that_was_set_back_keeps_nobody_alive_for_long() {
    let (file, now) = (File::new(), Time::now());
    let db = file.open().await;
    let tomorrow = now.after(Duration::from_secs(86_400));
    db.keep_alive(&instance(Kind::Seed, "p1"), tomorrow, LIFETIME).await.unwrap();
    db.mark_alive(now, LIFETIME).await.unwrap();
    assert_eq!(active_ids(&db, Kind::Seed, now.after(LIFETIME)).await, [""; 0]);
    db.close().await;
}

#[tokio::test]
async fn only_the_long_inactive_are_forgotten() {
    let (file, now) = (File::new(), Time::now());
    let db = file.open().await;
    let hour = Duration::from_secs(3600);
    db.keep_alive(&instance(Kind::Peer, "old"), now.before(hour), LIFETIME).await.unwrap();
    db.keep_alive(&instance(Kind::Peer, "recent"), now.before(LIFETIME), LIFETIME).await.unwrap();
    db.keep_alive(&instance(Kind::Peer, "slow"), now.before(hour), hour * 2).await.unwrap();
    assert_eq!(db.forget(now.before(hour / 2), now).await.unwrap(), 1);
    let page = Page { offset: 0, limit: 10 };
    let (left, total) = db.registered(false, &Filter::default(), page, now).await.unwrap();
    let ids: Vec<_> = left.iter().map(|row| row.instance.id.as_str()).collect();
    assert_eq!((ids, total), (vec!["recent", "slow"], 2));
    db.close().await;
}

#[tokio::test]
async fn a_changed_configuration_gets_a_larger_version() {
    let (file, now) = (File::new(), Time::now());
    let db = file.open().await;
    let name = ClusterName::default();
    let version = async || db.cluster(&name).await.unwrap().unwrap().config.version;
    let first = version().await;
    let values = config::Cluster { parents_per_child: 8, ..config::Cluster::default() };
    // The clock has not moved on, or has gone back: the version grows all the same.
    assert!(db.set_cluster(&name, &values, now.before(LIFETIME)).await.unwrap());
    let second = version().await;
    assert!(second > first);
    assert!(!db.set_cluster(&name, &values, now.after(LIFETIME)).await.unwrap());
    assert_eq!(version().await, second);
    db.ensure_cluster(&name, now).await.unwrap();
    let config = db.cluster(&name).await.unwrap().unwrap().config;
    assert_eq!((config.parents_per_child, config.version), (8, second));
    let largest = config::Cluster { origin_bytes_per_second: i64::MAX as u64, ..values };
    assert!(db.set_cluster(&name, &largest, now).await.unwrap());
    let config = db.cluster(&name).await.unwrap().unwrap().config;
    assert_eq!(config.origin_bytes_per_second, i64::MAX as u64);
    db.close().await;
}

#[tokio::test]
async fn an_instance_of_an_unknown_cluster_is_refused() {
    let file = File::new();
    let db = file.open().await;
    let stray = Instance { cluster: "elsewhere".parse().unwrap(), ..instance(Kind::Peer, "p1") };
    let error = db.keep_alive(&stray, Time::now(), LIFETIME).await.unwrap_err();
    assert!(matches!(error, KeepAliveError::UnknownCluster), "{error}");
    db.close().await;
}

#[tokio::test]
async fn a_full_cluster_takes_no_more_but_keeps_those_it_has() {
    let (file, now) = (File::new(), Time::now());
    let db = file.open().await;
    let known = instance(Kind::Peer, "known");
    db.keep_alive(&known, now, LIFETIME).await.unwrap();
    sqlx::query(
        "WITH RECURSIVE number(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM number WHERE n < 200000)
         INSERT INTO instances SELECT 'default', 'peer', 'p' || n, '', '', '', '', '', '', 0, 0 FROM number",
    )
    .execute(&db.write)
    .await
    .unwrap();
    let error = db.keep_alive(&instance(Kind::Peer, "new"), now, LIFETIME).await.unwrap_err();
    assert!(matches!(error, KeepAliveError::Full), "{error}");
    db.keep_alive(&known, now, LIFETIME).await.unwrap();
    db.close().await;
}
