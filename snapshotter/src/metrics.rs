//! What the snapshotter counts.

use darter_service::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// All counters; clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    /// Reads of layers by the kernel.
    pub(crate) reads: Family<ReadLabels, Counter>,
    /// Bytes answered.
    pub(crate) read_bytes: Counter,
    /// Reads that ended with an I/O error.
    pub(crate) read_errors: Counter,
    /// Layers mounted right now.
    pub(crate) mounted: Gauge,
    /// Leaves that starts of containers read, by whether a start profile had named them.
    pub(crate) start_leaves: Family<StartLabels, Counter>,
    /// Layers that clients prepared with an image's name.
    pub(crate) prepares: Family<PrepareLabels, Counter>,
}

/// Labels of a read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReadLabels {
    result: &'static str,
}

/// Whether a read found its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadResult {
    /// They were here.
    Hit,
    /// They had to be waited for.
    Miss,
}

/// Labels of a leaf that a start read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StartLabels {
    /// `hit`: it was named, `miss`: it was not, `none`: there was no profile.
    profile: &'static str,
}

/// Labels of a prepare.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct PrepareLabels {
    outcome: &'static str,
}

/// What became of a layer that could have been lazy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrepareOutcome {
    /// It is mounted when it is used.
    Lazy,
    /// containerd unpacks it.
    Plain,
}

impl Metrics {
    /// Registers everything under `darter_snapshotter_…`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("darter_snapshotter");
        registry.register("reads", "Reads of lazy layers by the kernel", metrics.reads.clone());
        registry.register(
            "read_bytes",
            "Bytes of lazy layers given to the kernel",
            metrics.read_bytes.clone(),
        );
        registry.register("read_errors", "Reads of lazy layers that failed", metrics.read_errors.clone());
        registry.register("mounted_layers", "Lazy layers mounted", metrics.mounted.clone());
        registry.register(
            "start_leaves",
            "Leaves that starts of containers read, by whether the start profile named them",
            metrics.start_leaves.clone(),
        );
        registry.register("lazy_prepares", "Layers that could be lazy, by outcome", metrics.prepares.clone());
        metrics
    }

    pub(crate) fn read(&self, result: ReadResult) {
        let result = match result {
            ReadResult::Hit => "hit",
            ReadResult::Miss => "miss",
        };
        self.reads.get_or_create(&ReadLabels { result }).inc();
    }

    /// A start read so many leaves, of which a profile had named so many.
    pub(crate) fn started(&self, read: u32, foreseen: Option<u32>) {
        let count = |profile, leaves: u32| {
            self.start_leaves.get_or_create(&StartLabels { profile }).inc_by(u64::from(leaves));
        };
        match foreseen {
            Some(foreseen) => {
                count("hit", foreseen);
                count("miss", read.saturating_sub(foreseen));
            }
            None => count("none", read),
        }
    }

    pub(crate) fn prepare(&self, outcome: PrepareOutcome) {
        let outcome = match outcome {
            PrepareOutcome::Lazy => "lazy",
            PrepareOutcome::Plain => "plain",
        };
        self.prepares.get_or_create(&PrepareLabels { outcome }).inc();
    }
}
