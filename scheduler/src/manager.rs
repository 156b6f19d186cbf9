//! What connects this scheduler to the manager, if there is one: being known there, and the cluster's settings.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use darter_proto::manager::{Instance, Kind};
use darter_service::{
    backoff::Backoff,
    manager::{self, Manager},
};
use tokio::{
    net::UdpSocket,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{config::Config, service::Service};

/// How long finding the way to the manager may take.
const ROUTE_DEADLINE: Duration = Duration::from_secs(3);
/// The shortest and the longest wait before it is looked for again.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Keeps this scheduler alive at the manager, and its settings as the manager wants them, until shutdown.
///
/// Peers are served all the same while the manager is away, or was never there.
pub(crate) async fn follow(
    config: &Config,
    id: &str,
    listens: SocketAddr,
    service: &Service,
    stop: CancellationToken,
) {
    let Some(settings) = &config.manager else { return };
    let found = stop.run_until_cancelled(address(config, settings, listens)).await;
    let Some(address) = found else { return };
    let instance = Instance {
        kind: Kind::Scheduler.into(),
        id: id.to_owned(),
        name: config.name(),
        address: address.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Instance::default()
    };
    match manager::connect(settings, instance) {
        Ok((manager, link)) => {
            tokio::join!(link.run(stop.clone()), async {
                stop.run_until_cancelled(refresh(config, id, manager, service)).await;
            });
        }
        Err(error) => error!(%error, "goes on without a manager"),
    }
}

/// Passes on the manager's dynamic configuration whenever it changes.
async fn refresh(config: &Config, id: &str, manager: Manager, service: &Service) {
    let mut dynamic = manager.config();
    while dynamic.changed().await.is_ok() {
        let settings = config.settings(id, &dynamic.borrow_and_update());
        if service.change_settings(settings).await.is_err() {
            return;
        }
    }
}

/// The address that the manager hands out: the configured one, the one that is listened on, or the one that this host
/// uses towards the manager.
async fn address(config: &Config, manager: &manager::Config, listens: SocketAddr) -> SocketAddr {
    if let Some(advertise) = config.advertise {
        return advertise;
    }
    if !listens.ip().is_unspecified() {
        return listens;
    }
    let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
    loop {
        match route(&manager.address).await {
            Ok(local) => return SocketAddr::new(local.ip(), listens.port()),
            Err(error) => {
                warn!(%error, manager = manager.address, "no way to the manager yet; `advertise` is not set");
                sleep(backoff.wait()).await;
            }
        }
    }
}

/// This host's address towards another. Connecting a datagram socket sends nothing, it only asks the system.
async fn route(to: &str) -> io::Result<SocketAddr> {
    let local = async {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(to).await?;
        socket.local_addr()
    };
    timeout(ROUTE_DEADLINE, local).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_manager_is_told_an_address_that_peers_can_use() {
        let settings = manager::Config::new("127.0.0.1:7420");
        let any: SocketAddr = "0.0.0.0:7410".parse().unwrap();
        let own: SocketAddr = "127.0.0.2:7410".parse().unwrap();
        let config = Config::default();
        assert_eq!(address(&config, &settings, any).await, "127.0.0.1:7410".parse().unwrap());
        assert_eq!(address(&config, &settings, own).await, own);
        let config = Config { advertise: Some(own), ..config };
        assert_eq!(address(&config, &settings, any).await, own);
    }
}
