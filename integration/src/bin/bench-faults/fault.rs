//! What may be dead or frozen.

use std::fmt;

use anyhow::Result;
use darter_integration::{Cluster, cluster::ClusterBuilder, process::Process};

/// Something that happens to a cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    who: Who,
    how: How,
    pub(crate) when: When,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Nobody,
    Scheduler,
    Seed,
    /// The only other node, which has the image; there is no seed.
    Parent,
    /// Manager, scheduler, seed and the other node.
    Everybody,
}

#[derive(Debug, Clone, Copy)]
enum How {
    /// `kill -9`: connections are reset.
    Dead,
    /// `kill -STOP`: connections are taken, and nothing is answered.
    Frozen,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum When {
    Before,
    Amid,
}

const fn fault(who: Who, how: How, when: When) -> Fault {
    Fault { who, how, when }
}

/// All of them.
pub(crate) const FAULTS: [Fault; 16] = [
    fault(Who::Nobody, How::Dead, When::Before),
    fault(Who::Scheduler, How::Dead, When::Before),
    fault(Who::Scheduler, How::Dead, When::Amid),
    fault(Who::Scheduler, How::Frozen, When::Before),
    fault(Who::Scheduler, How::Frozen, When::Amid),
    fault(Who::Seed, How::Dead, When::Before),
    fault(Who::Seed, How::Dead, When::Amid),
    fault(Who::Seed, How::Frozen, When::Before),
    fault(Who::Seed, How::Frozen, When::Amid),
    fault(Who::Parent, How::Dead, When::Amid),
    fault(Who::Parent, How::Frozen, When::Before),
    fault(Who::Parent, How::Frozen, When::Amid),
    fault(Who::Everybody, How::Dead, When::Before),
    fault(Who::Everybody, How::Dead, When::Amid),
    fault(Who::Everybody, How::Frozen, When::Before),
    fault(Who::Everybody, How::Frozen, When::Amid),
];

impl When {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Before => "before the pull",
            Self::Amid => "in its middle",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = match self.who {
            Who::Nobody => return f.write_str("nothing"),
            Who::Scheduler => "scheduler",
            Who::Seed => "seed",
            Who::Parent => "the only parent",
            Who::Everybody => "all but the node",
        };
        let how = match self.how {
            How::Dead => "dead",
            How::Frozen => "frozen",
        };
        write!(f, "{who} {how}")
    }
}

impl Fault {
    /// Two nodes, of which the last one pulls.
    pub(crate) fn cluster(self) -> ClusterBuilder {
        let cluster = Cluster::with_nodes(2).with_links();
        if self.has_holder() { cluster.without_seed() } else { cluster }
    }

    /// Whether the first node has the image before.
    pub(crate) fn has_holder(self) -> bool {
        self.who == Who::Parent
    }

    pub(crate) fn strike(self, cluster: &mut Cluster) -> Result<()> {
        for process in self.processes(cluster) {
            match self.how {
                How::Dead => process.kill()?,
                How::Frozen => process.freeze()?,
            }
        }
        Ok(())
    }

    /// Lets what is frozen go on, so that it can be told to end.
    pub(crate) fn relieve(self, cluster: &mut Cluster) -> Result<()> {
        match self.how {
            How::Dead => Ok(()),
            How::Frozen => self.processes(cluster).into_iter().try_for_each(Process::thaw),
        }
    }

    fn processes(self, cluster: &mut Cluster) -> Vec<&mut Process> {
        let everybody = self.who == Who::Everybody;
        let manager = cluster.manager.as_mut().filter(|_| everybody).map(|manager| &mut manager.service);
        let is_struck = |who| everybody || self.who == who;
        let scheduler = cluster.scheduler.as_mut().filter(|_| is_struck(Who::Scheduler));
        let seed = cluster.seed.as_mut().filter(|_| is_struck(Who::Seed));
        let parent = cluster.nodes.first_mut().filter(|_| is_struck(Who::Parent));
        let scheduler = scheduler.map(|scheduler| &mut scheduler.service);
        let peers =
            seed.into_iter().chain(parent.map(|parent| &mut parent.peer)).map(|peer| &mut peer.service);
        manager.into_iter().chain(scheduler).chain(peers).map(|service| &mut service.process).collect()
    }
}
