//! This host in its cluster: how it introduces itself, and what the manager tells it.

use darter_proto::{
    manager::{Instance, Kind},
    scheduler::{Config as Limited, Host, Place},
};
use darter_service::manager::{self, Manager};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Peer, StartError, config::Config, store::Store};

/// This host as the scheduler is told.
pub(crate) fn host(config: &Config, store: &Store, transfer_address: &str) -> Host {
    let name = if config.name.is_empty() {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        config.name.clone()
    };
    let place = &config.place;
    Host {
        id: store.host_id().to_owned(),
        name,
        transfer_address: transfer_address.to_owned(),
        place: Some(Place {
            region: place.region.clone(),
            zone: place.zone.clone(),
            rack: place.rack.clone(),
        }),
        seed: config.seed,
        upload_slots: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// What the manager calls a peer.
pub(crate) fn kind(seed: bool) -> Kind {
    if seed { Kind::Seed } else { Kind::Peer }
}

/// Makes this peer known to the manager, if there is one.
pub(crate) fn link(
    config: &Config,
    host: &Host,
    tracker: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<Option<Manager>, StartError> {
    let Some(settings) = &config.manager else { return Ok(None) };
    let instance = Instance {
        kind: kind(config.seed).into(),
        id: host.id.clone(),
        name: host.name.clone(),
        address: host.transfer_address.clone(),
        version: host.version.clone(),
        region: config.place.region.clone(),
        zone: config.place.zone.clone(),
        rack: config.place.rack.clone(),
        ..Instance::default()
    };
    let (manager, link) = manager::connect(settings, instance)?;
    tracker.spawn(link.run(shutdown.clone()));
    Ok(Some(manager))
}

/// The configured schedulers, then those that the manager knows, as one list that follows the manager's.
pub(crate) fn schedulers(
    configured: Vec<String>,
    manager: Option<Manager>,
    tracker: &TaskTracker,
    shutdown: &CancellationToken,
) -> watch::Receiver<Vec<String>> {
    let (sender, receiver) = watch::channel(configured.clone());
    let shutdown = shutdown.clone();
    tracker.spawn(async move {
        if let Some(manager) = manager {
            let mut told = manager.schedulers();
            loop {
                let mut all = configured.clone();
                let told_now = told.borrow_and_update().clone();
                let addresses = told_now.iter().map(|instance| format!("http://{}", instance.address));
                all.extend(addresses.filter(|address| !configured.contains(address)));
                sender.send_replace(all);
                tokio::select! {
                    changed = told.changed() => if changed.is_err() { break },
                    () = shutdown.cancelled() => break,
                }
            }
        }
        shutdown.cancelled().await;
        drop(sender);
    });
    receiver
}

/// Applies the manager's dynamic configuration whenever it changes.
pub(crate) async fn follow_limits(peer: Peer, manager: Manager) {
    let mut config = manager.config();
    loop {
        let now = *config.borrow_and_update();
        peer.limit(&Limited {
            download_bytes_per_second: now.download_bytes_per_second,
            upload_bytes_per_second: now.upload_bytes_per_second,
            origin_bytes_per_second: now.origin_bytes_per_second,
            prefetch_bytes_per_second: now.prefetch_bytes_per_second,
        });
        tokio::select! {
            changed = config.changed() => if changed.is_err() { return },
            () = peer.inner.shutdown.cancelled() => return,
        }
    }
}
