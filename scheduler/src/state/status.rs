//! What the scheduler knows right now, for people.

use darter_proto::scheduler as proto;

use super::{
    State,
    hosts::Host,
    ids::HostKey,
    members::{Peer, Phase},
    task::Task,
};

/// Most hosts and tasks, and most peers of all tasks together, in one answer: it must fit a message.
const MAX_HOSTS: usize = 5_000;
const MAX_TASKS: usize = 1_000;
const MAX_PEERS: usize = 5_000;

impl State {
    /// Hosts with a session, and tasks: those that are wanted first. Cut off where it would get too long for a message.
    pub fn status(&self) -> proto::StatusReply {
        let hosts = self.world.hosts.iter().filter(|(_, host)| host.session.is_some());
        let mut tasks: Vec<_> = self.tasks.values().collect();
        tasks.sort_by_key(|task| std::cmp::Reverse(task.peers.running().len()));
        let mut room = MAX_PEERS;
        let tasks = tasks.into_iter().take(MAX_TASKS);
        proto::StatusReply {
            scheduler_id: self.world.settings.scheduler_id.clone(),
            hosts: hosts.take(MAX_HOSTS).map(|(_, host)| host_status(host)).collect(),
            tasks: tasks.map(|task| self.task_status(task, &mut room)).collect(),
        }
    }

    fn task_status(&self, task: &Task, room: &mut usize) -> proto::TaskStatus {
        let (length, leaves) = task.shape.map_or((0, 0), |shape| (shape.length, shape.leaves));
        let peers: Vec<_> =
            task.peers.iter().take(*room).map(|(key, peer)| self.peer_status(key, peer, leaves)).collect();
        *room -= peers.len();
        proto::TaskStatus {
            id: task.id.to_string(),
            length,
            leaves,
            digests_known: task.digests.count(),
            leases: task.leases.iter().map(|lease| self.name(lease.holder)).collect(),
            peers,
        }
    }

    fn peer_status(&self, key: HostKey, peer: &Peer, leaves: u32) -> proto::TaskPeer {
        let held = if peer.phase == Phase::Complete { leaves } else { peer.held };
        let parents = peer.parents.iter().map(|link| self.name(link.parent)).collect();
        proto::TaskPeer { host: self.name(key), held, parents }
    }

    fn name(&self, key: HostKey) -> String {
        self.world.host_id(key).map(|id| id.to_string()).unwrap_or_default()
    }
}

fn host_status(host: &Host) -> proto::HostStatus {
    proto::HostStatus {
        host: Some(host.announced.clone()),
        children: host.children,
        holdings: u32::try_from(host.tasks.len()).unwrap_or(u32::MAX),
    }
}
