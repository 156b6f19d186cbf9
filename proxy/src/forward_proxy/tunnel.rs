//! `CONNECT`: bytes both ways, not looked at.

use std::{sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, upgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use url::Url;

use crate::{
    answer::{self, Body, Failure, Verdict},
    proxy::Proxy,
    route::Kind,
    rules::{Action, Subject},
};

/// A tunnel through which nothing moves for so long is closed.
const IDLE: Duration = Duration::from_secs(900);
/// Longest time from the answer to the client's first use of the tunnel.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(30);
const BUFFER: usize = 32 * 1024;

impl Proxy {
    /// Opens a tunnel to the host and port that a `CONNECT` names.
    pub(crate) async fn tunnel(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        self.forward_is_on()?;
        let authority = request.uri().authority().ok_or_else(Failure::bad_url)?;
        let port = authority.port_u16().ok_or_else(Failure::bad_url)?;
        let url =
            Url::parse(&format!("https://{}:{port}/", authority.host())).map_err(|_| Failure::bad_url())?;
        let decision = self
            .rules
            .load()
            .decide(Subject { registry: &super::host(&url), repository: None, url: url.as_str() })
            .map(|decision| decision.action);
        if decision == Some(Action::Deny) || !self.config.forward.ports.contains(&port) {
            return Err(Failure::denied());
        }
        let slot = self.tunnels.clone().try_acquire_owned().map_err(|_| Failure::busy())?;
        let name = super::host(&url);
        if self.interceptor.as_ref().is_some_and(|interceptor| interceptor.is_for(&name)) {
            let (proxy, upgrading) = (self.clone(), upgrade::on(request));
            self.tasks.spawn(async move {
                if let Ok(Ok(tunnel)) = timeout(UPGRADE_TIMEOUT, upgrading).await {
                    let stop = proxy.stop.clone();
                    stop.run_until_cancelled(proxy.opened(tunnel, url, name)).await;
                }
                drop(slot);
            });
            return Verdict { p2p: true, why: "intercepted" }.put(Ok(Response::new(answer::empty())));
        }
        let verdict = Verdict { p2p: false, why: "tunnel" };
        let mut there = match self.peer.origin().dial(&url).await {
            Ok(there) => there,
            Err(error) => return verdict.put(Err(Failure::of_origin(&error, Kind::Blob))),
        };
        let (proxy, upgrading) = (self.clone(), upgrade::on(request));
        self.tasks.spawn(async move {
            let work = async {
                if let Ok(Ok(here)) = timeout(UPGRADE_TIMEOUT, upgrading).await {
                    let limit = proxy.config.write_timeout;
                    join(&mut TokioIo::new(here), &mut there, limit).await;
                }
            };
            proxy.stop.run_until_cancelled(work).await;
            drop(slot);
        });
        verdict.put(Ok(Response::new(answer::empty())))
    }
}

/// Copies both ways until both sides have ended, one is broken, or nothing moves any more.
async fn join(
    here: &mut (impl AsyncRead + AsyncWrite + Unpin),
    there: &mut (impl AsyncRead + AsyncWrite + Unpin),
    write_timeout: Duration,
) {
    let (moved, mut moves) = watch::channel(Instant::now());
    let ((from_here, to_here), (from_there, to_there)) = (split(here), split(there));
    let copies = async {
        tokio::join!(
            copy(from_here, to_there, &moved, write_timeout),
            copy(from_there, to_here, &moved, write_timeout)
        )
    };
    let idle = async {
        loop {
            let last = *moves.borrow_and_update();
            if last.elapsed() >= IDLE {
                return;
            }
            sleep_until(last + IDLE).await;
        }
    };
    tokio::select! {
        _ = copies => {}
        () = idle => {}
    }
}

/// Copies to the end and passes the end on.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &watch::Sender<Instant>,
    write_timeout: Duration,
) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..read).unwrap_or_default();
        if !matches!(timeout(write_timeout, to.write_all(bytes)).await, Ok(Ok(()))) {
            break;
        }
        moved.send_replace(Instant::now());
    }
    to.shutdown().await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_ends_with_both_sides_or_when_nothing_moves() {
        let ((mut a, mut near), (mut far, mut b)) = (duplex(64), duplex(64));
        let joined = tokio::spawn(async move { join(&mut near, &mut far, IDLE).await });
        a.write_all(b"ping").await.unwrap();
        a.shutdown().await.unwrap();
        let mut heard = vec![];
        b.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"ping");
        b.write_all(b"pong").await.unwrap();
        drop(b);
        let mut heard = vec![];
        a.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"pong");
        joined.await.unwrap();

        let ((_a, mut near), (mut far, _b)) = (duplex(64), duplex(64));
        join(&mut near, &mut far, IDLE).await;
    }
}
