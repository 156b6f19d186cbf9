//! Schedulers, seed peers and peers, as they register.

use crate::name::{ClusterName, Invalid, check, required};
use darter_proto::manager as proto;
use std::net::SocketAddr;

/// What an instance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A scheduler.
    Scheduler,
    /// A seed peer.
    Seed,
    /// Any other peer.
    Peer,
}

/// What names an instance in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) cluster: ClusterName,
    pub(crate) kind: Kind,
    pub(crate) id: String,
}

/// An instance whose words have been checked.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Instance {
    pub(crate) cluster: ClusterName,
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) rack: String,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Scheduler, Self::Seed, Self::Peer];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Scheduler => "scheduler",
            Self::Seed => "seed",
            Self::Peer => "peer",
        }
    }

    fn from_wire(kind: i32) -> Result<Self, Invalid> {
        match proto::Kind::try_from(kind) {
            Ok(proto::Kind::Scheduler) => Ok(Self::Scheduler),
            Ok(proto::Kind::Seed) => Ok(Self::Seed),
            Ok(proto::Kind::Peer) => Ok(Self::Peer),
            Ok(proto::Kind::Unknown) | Err(_) => Err(Invalid {
                field: "kind",
                problem: format!("is {kind}; it must be 1 (scheduler), 2 (seed) or 3 (peer)"),
            }),
        }
    }
}

impl From<Kind> for proto::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Scheduler => Self::Scheduler,
            Kind::Seed => Self::Seed,
            Kind::Peer => Self::Peer,
        }
    }
}

impl TryFrom<proto::LeaveRequest> for Key {
    type Error = Invalid;

    fn try_from(wire: proto::LeaveRequest) -> Result<Self, Invalid> {
        Ok(Self {
            cluster: ClusterName::from_wire(wire.cluster)?,
            kind: Kind::from_wire(wire.kind)?,
            id: checked_id(wire.id)?,
        })
    }
}

impl TryFrom<proto::Instance> for Instance {
    type Error = Invalid;

    /// An instance without a name is called by its id.
    fn try_from(wire: proto::Instance) -> Result<Self, Invalid> {
        let id = checked_id(wire.id)?;
        check("name", &wire.name, 253, "._-")?;
        check("version", &wire.version, 64, ".+_-")?;
        for (field, place) in [("region", &wire.region), ("zone", &wire.zone), ("rack", &wire.rack)] {
            check(field, place, 128, "._/:-")?;
        }
        Ok(Self {
            cluster: ClusterName::from_wire(wire.cluster)?,
            kind: Kind::from_wire(wire.kind)?,
            name: if wire.name.is_empty() { id.clone() } else { wire.name },
            id,
            address: checked_address(&wire.address)?,
            version: wire.version,
            region: wire.region,
            zone: wire.zone,
            rack: wire.rack,
        })
    }
}

impl From<Instance> for proto::Instance {
    fn from(instance: Instance) -> Self {
        Self {
            kind: proto::Kind::from(instance.kind).into(),
            id: instance.id,
            name: instance.name,
            address: instance.address,
            cluster: instance.cluster.to_string(),
            version: instance.version,
            region: instance.region,
            zone: instance.zone,
            rack: instance.rack,
        }
    }
}

fn checked_id(id: String) -> Result<String, Invalid> {
    required("id", &id)?;
    check("id", &id, 128, "._:-")?;
    Ok(id)
}

/// An address is handed to others, who must be able to connect to it.
fn checked_address(address: &str) -> Result<String, Invalid> {
    let wrong = |problem: &str| Invalid { field: "address", problem: problem.into() };
    let socket: SocketAddr =
        address.parse().map_err(|_| wrong("is not an ip:port, as 10.0.0.1:7430 or [fd00::1]:7430"))?;
    if socket.port() == 0 {
        return Err(wrong("has port 0"));
    }
    if socket.ip().is_unspecified() || socket.ip().is_multicast() {
        return Err(wrong("is not an address that others can connect to; set the address to advertise"));
    }
    Ok(socket.to_string())
}

#[cfg(test)]
mod tests;
