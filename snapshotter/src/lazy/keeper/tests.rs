use std::{
    fs::File,
    io::{Read, Seek, Write},
    thread::JoinHandle,
};

use tempfile::TempDir;

use super::*;

fn start_here(dir: &Path) -> io::Result<()> {
    let dir = dir.to_owned();
    thread::spawn(move || keep(&dir, false));
    Ok(())
}

fn never(_: &Path) -> io::Result<()> {
    panic!("there is a keeper")
}

/// Something to hold that never ends, as a regular file reports no errors.
fn file(dir: &TempDir, content: &str) -> OwnedFd {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(dir.path().join("f"))
        .unwrap();
    file.write_all(content.as_bytes()).unwrap();
    file.into()
}

fn content(fd: OwnedFd) -> String {
    let mut file = File::from(fd);
    file.rewind().unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    content
}

/// A pipe's writing end, which reports an error once the reading end is closed, as a FUSE device does at its end.
fn ending() -> (OwnedFd, impl Sized) {
    let (reader, writer) = std::io::pipe().unwrap();
    (writer.into(), reader)
}

fn run_here(dir: &TempDir) -> JoinHandle<io::Result<()>> {
    let dir = dir.path().to_owned();
    thread::spawn(move || keep(&dir, false))
}

#[test]
fn the_next_daemon_gets_what_the_last_one_gave() {
    let dir = TempDir::new().unwrap();
    let (first, held) = Keeper::open(dir.path(), start_here).unwrap();
    assert!(held.is_none());
    first.keep(&file(&dir, "one")).unwrap();
    drop(first);
    for _ in 0..3 {
        let (_, held) = Keeper::open(dir.path(), never).unwrap();
        assert_eq!(content(held.unwrap()), "one");
    }
    let (next, _) = Keeper::open(dir.path(), never).unwrap();
    next.keep(&file(&dir, "two")).unwrap();
    let (_, held) = Keeper::open(dir.path(), never).unwrap();
    assert_eq!(content(held.unwrap()), "two");
}

#[test]
fn it_ends_with_the_mount_and_nothing_stays_behind() {
    let dir = TempDir::new().unwrap();
    let running = run_here(&dir);
    let (writer, reader) = ending();
    let (daemon, _) = Keeper::open(dir.path(), start_here).unwrap();
    daemon.keep(&writer).unwrap();
    drop((daemon, reader));
    running.join().unwrap().unwrap();
    // If another one was started before this one listened, that one is the keeper.
    let gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        !socket_path(dir.path()).exists()
    });
    assert!(gone);
    // The next mount gets a keeper of its own.
    let (_, held) = Keeper::open(dir.path(), start_here).unwrap();
    assert!(held.is_none());
}

#[test]
fn a_second_keeper_ends_at_once() {
    let dir = TempDir::new().unwrap();
    let (daemon, _) = Keeper::open(dir.path(), start_here).unwrap();
    daemon.keep(&file(&dir, "kept")).unwrap();
    keep(dir.path(), false).unwrap();
    let (_, held) = Keeper::open(dir.path(), never).unwrap();
    assert_eq!(content(held.unwrap()), "kept");
}

#[test]
fn rubbish_ends_only_the_connection() {
    let dir = TempDir::new().unwrap();
    let (daemon, _) = Keeper::open(dir.path(), start_here).unwrap();
    daemon.keep(&file(&dir, "kept")).unwrap();
    for rubbish in [&b""[..], b"x", b"\x02K", b"\x01K", b"\x01H and more"] {
        let (other, _) = Keeper::open(dir.path(), never).unwrap();
        rustix::net::send(&other.socket, rubbish, rustix::net::SendFlags::empty()).unwrap();
        assert!(other.receive().is_err(), "{rubbish:?}");
    }
    let (_, held) = Keeper::open(dir.path(), never).unwrap();
    assert_eq!(content(held.unwrap()), "kept");
}

#[tokio::test]
async fn a_daemon_notices_the_end_of_its_keeper() {
    let dir = TempDir::new().unwrap();
    let (writer, reader) = ending();
    let (daemon, _) = Keeper::open(dir.path(), start_here).unwrap();
    daemon.keep(&writer).unwrap();
    let ended = tokio::time::timeout(Duration::from_millis(50), daemon.ended()).await;
    assert!(ended.is_err(), "it is still there");
    drop(reader);
    rustix::net::shutdown(&daemon.socket, rustix::net::Shutdown::Write).unwrap();
    daemon.ended().await.unwrap();
}
