//! An origin that does byte for byte what a test's script says, also where that is no HTTP.

use std::{io, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// A request as the origin read it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// How many requests of this method came before.
    pub(super) before: usize,
}

/// What the origin does on the connection, in order. After that it closes it.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Send(Vec<u8>),
    Pause(Duration),
    /// Sends the bytes one at a time, with this pause after each.
    Drip(Vec<u8>, Duration),
    /// Closes the connection with a reset.
    Reset,
    /// Says nothing more and keeps the connection open.
    Hang,
}

type Script = dyn Fn(&Asked) -> Vec<Act> + Send + Sync;

/// A running origin; it stops when dropped.
pub(super) struct BadOrigin {
    /// Its name as a registry.
    pub(super) name: String,
    seen: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The first byte that a `Range` asks for, if there is one.
    pub(super) fn range_start(&self) -> Option<usize> {
        let (start, _) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        start.parse().ok()
    }
}

impl BadOrigin {
    pub(super) async fn start(script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = listener.local_addr().unwrap().to_string();
        let seen = Arc::default();
        let task = tokio::spawn(accept(listener, Arc::new(script), Arc::clone(&seen)));
        Self { name, seen, task }
    }

    pub(super) fn seen(&self) -> Vec<Asked> {
        self.seen.lock().clone()
    }
}

impl Drop for BadOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer without its body: `status` is a number and its reason, each of `headers` a whole line.
pub(super) fn head(status: &str, headers: &[String]) -> Vec<u8> {
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("HTTP/1.1 {status}\r\nConnection: close\r\n{lines}\r\n").into_bytes()
}

/// A whole answer with the right length.
pub(super) fn whole(status: &str, headers: &[String], body: &[u8]) -> Vec<Act> {
    let length = format!("Content-Length: {}", body.len());
    vec![Act::Send([head(status, &[headers, &[length]].concat()), body.to_vec()].concat())]
}

async fn accept(listener: TcpListener, script: Arc<Script>, seen: Arc<Mutex<Vec<Asked>>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (script, seen) = (script.clone(), seen.clone());
        connections.spawn(async move {
            // A client that hangs up is nothing that a test asks about.
            serve(stream, &*script, &seen).await.ok();
        });
    }
}

async fn serve(stream: TcpStream, script: &Script, seen: &Mutex<Vec<Asked>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let asked = read(&mut stream, seen).await?;
    let acts = script(&asked);
    let mut stream = stream.into_inner();
    for act in acts {
        match act {
            Act::Send(bytes) => stream.write_all(&bytes).await?,
            Act::Pause(time) => sleep(time).await,
            Act::Drip(bytes, pause) => {
                for byte in bytes {
                    stream.write_all(&[byte]).await?;
                    sleep(pause).await;
                }
            }
            Act::Reset => {
                // Lets what came before arrive: a reset overtakes it.
                sleep(Duration::from_millis(50)).await;
                return stream.set_zero_linger();
            }
            Act::Hang => std::future::pending().await,
        }
    }
    stream.shutdown().await
}

async fn read(stream: &mut BufReader<TcpStream>, seen: &Mutex<Vec<Asked>>) -> io::Result<Asked> {
    let mut lines = vec![];
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut first = lines[0].split(' ');
    let method: Method = first.next().unwrap().parse().unwrap();
    let path = first.next().unwrap().to_owned();
    let headers = lines[1..].iter().map(|line| line.split_once(": ").unwrap());
    let headers = headers
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()));
    let headers = headers.collect();
    let mut seen = seen.lock();
    let before = seen.iter().filter(|asked: &&Asked| asked.method == method).count();
    let asked = Asked { method, path, headers, before };
    seen.push(asked.clone());
    Ok(asked)
}
