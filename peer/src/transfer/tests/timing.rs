use super::*;

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
#[ignore]
fn timing() {
    const LEAVES: u32 = 2048;
    let rounds: u32 = 4;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreConfig { dir: dir.path().join("store"), ..StoreConfig::default() }).unwrap();
    let entry = store.create(&task(1), Geometry::Fixed { len: u64::from(LEAVES) * u64::from(LEAF_LEN) }).unwrap();
    for leaf in 0..LEAVES {
        write(&entry, 1, leaf);
    }
    store.flush().unwrap();
    for children in [1usize, 4] {
        let (tx, rx) = std::sync::mpsc::channel();
        let shutdown = CancellationToken::new();
        let server = std::thread::spawn({
            let (store, shutdown) = (store.clone(), shutdown.clone());
            move || {
                runtime().block_on(async move {
                    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                    tx.send(listener.local_addr().unwrap()).unwrap();
                    let before = cpu();
                    Server::serve(listener, store, Limits::default(), TransferConfig::default(), metrics(), shutdown).await;
                    cpu() - before
                })
            }
        });
        let address = rx.recv().unwrap();
        let client = std::thread::spawn(move || {
            runtime().block_on(async move {
                let mut all = Vec::new();
                for _ in 0..children {
                    let mut child = Child::new();
                    let subscription = child.subscribe(address, 1).await;
                    child.have().await;
                    all.push((child, subscription));
                }
                let before = cpu();
                let start = std::time::Instant::now();
                let per = rounds * LEAVES / children as u32;
                let runs = all.iter_mut().map(|(child, subscription)| async move {
                    let mut next = 0;
                    for _ in 0..3 {
                        subscription.request(next % LEAVES..next % LEAVES + 16, Class::Stream);
                        next += 16;
                    }
                    for got in 0..per {
                        child.leaf().await;
                        if next < per && got % 16 == 15 {
                            subscription.request(next % LEAVES..next % LEAVES + 16, Class::Stream);
                            next += 16;
                        }
                    }
                });
                futures_util::future::join_all(runs).await;
                (cpu() - before, start.elapsed().as_secs_f64())
            })
        });
        let (client, wall) = client.join().unwrap();
        shutdown.cancel();
        let server = server.join().unwrap();
        let gb = f64::from(rounds * LEAVES) * f64::from(LEAF_LEN) / 1e9;
        println!(
            "{children} connections: {gb:.2} GB, wall {wall:.2} s, server {:.3} + client {:.3} = {:.3} core-s/GB",
            server / gb,
            client / gb,
            (server + client) / gb
        );
    }
}

#[test]
#[ignore]
fn timing_bare() {
    use tokio::io::AsyncReadExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    const LEN: usize = 512 << 20;
    std::fs::write(&path, vec![7u8; LEN]).unwrap();
    for (name, lowat, fresh) in [("bare", false, false), ("bare+lowat", true, false), ("bare+lowat+fresh", true, true), ("bare", false, false)] {
        let (tx, rx) = std::sync::mpsc::channel();
        let path = path.clone();
        let server = std::thread::spawn(move || {
            runtime().block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tx.send(listener.local_addr().unwrap()).unwrap();
                let (stream, _) = listener.accept().await.unwrap();
                if lowat {
                    socket::tune(&stream).unwrap();
                }
                let file = std::fs::File::open(path).unwrap();
                let before = cpu();
                for _ in 0..4 {
                    let mut at = 0u64;
                    while at < LEN as u64 {
                        let leaf = (LEN as u64 - at).min(262144);
                        at += socket::send_file(&stream, &file, at, leaf).await.unwrap();
                    }
                }
                cpu() - before
            })
        });
        let address: SocketAddr = rx.recv().unwrap();
        let client = std::thread::spawn(move || {
            runtime().block_on(async move {
                let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                let mut buffer = bytes::BytesMut::with_capacity(262144);
                let before = cpu();
                loop {
                    let n = stream.read_buf(&mut buffer).await.unwrap();
                    if n == 0 {
                        return cpu() - before;
                    }
                    if buffer.len() == buffer.capacity() {
                        if fresh {
                            buffer = bytes::BytesMut::with_capacity(262144);
                        } else {
                            buffer.clear();
                        }
                    }
                }
            })
        });
        let (client, server) = (client.join().unwrap(), server.join().unwrap());
        let gb = 4.0 * LEN as f64 / 1e9;
        println!("{name} connections: server {:.3} + client {:.3} = {:.3} core-s/GB", server / gb, client / gb, (server + client) / gb);
    }
}
