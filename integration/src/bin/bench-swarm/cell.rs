//! What is measured: one cell of the table.

use clap::ValueEnum;
use darter_integration::scenario::ScenarioKind;

/// One run of a swarm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) arm: Arm,
    pub(crate) scenario: ScenarioKind,
    pub(crate) content: Content,
    /// Peers, without the seed.
    pub(crate) n: usize,
    pub(crate) mib: u64,
}

/// By which policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arm {
    Ours,
    /// Three parents for good, whole pieces only, no coordinated source.
    ThreeParents,
    /// A piece is passed on when it is complete.
    NoLeafRelay,
    NoRotation,
    /// The seed shows everybody everything.
    NoCoordination,
    /// Every host asks the origin.
    Direct,
}

/// What is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Content {
    Blob,
    /// Five blobs at once.
    Image,
}

impl Arm {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::ThreeParents => "three-parents",
            Self::NoLeafRelay => "no-leaf-relay",
            Self::NoRotation => "no-rotation",
            Self::NoCoordination => "no-coordination",
            Self::Direct => "direct",
        }
    }
}

impl Content {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Image => "image",
        }
    }
}

impl Cell {
    /// Each host's link in Mbit/s.
    pub(crate) fn rate(&self) -> u32 {
        if self.n <= 16 { 100 } else { 50 }
    }

    /// Lengths of the blobs in bytes.
    pub(crate) fn blobs(&self) -> Vec<u64> {
        let mib = |sixteenths: u64| (self.mib * sixteenths) << 16;
        match self.content {
            Content::Blob => vec![self.mib << 20],
            Content::Image => [1, 2, 3, 4, 6].map(mib).to_vec(),
        }
    }

    /// Peers that are killed; the last ones.
    pub(crate) fn killed(&self) -> usize {
        if self.scenario == ScenarioKind::Churn { self.n.div_ceil(10) } else { 0 }
    }

    /// Peers that are slow; the last ones.
    pub(crate) fn slow(&self) -> usize {
        if self.scenario == ScenarioKind::Slow { self.n.div_ceil(20) } else { 0 }
    }
}

/// The whole table.
pub(crate) fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for n in [16, 32] {
        let mut add = |arm, scenario, content, mib| cells.push(Cell { arm, scenario, content, n, mib });
        for mib in [16, 64, 256] {
            add(Arm::Ours, ScenarioKind::AtOnce, Content::Blob, mib);
        }
        add(Arm::Ours, ScenarioKind::AtOnce, Content::Image, 64);
        for scenario in [ScenarioKind::Spread, ScenarioKind::Churn, ScenarioKind::Slow, ScenarioKind::Racks] {
            add(Arm::Ours, scenario, Content::Blob, 64);
        }
        for arm in [Arm::ThreeParents, Arm::NoLeafRelay, Arm::NoRotation, Arm::NoCoordination] {
            add(arm, ScenarioKind::AtOnce, Content::Blob, 64);
        }
        // Sixteen times as slow and more: a small one shows it.
        add(Arm::Direct, ScenarioKind::AtOnce, Content::Blob, 16);
    }
    cells
}
