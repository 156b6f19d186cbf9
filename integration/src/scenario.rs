//! The scenarios of a swarm, for those who measure it and those who simulate it.

use clap::ValueEnum;

/// How peers come and what happens to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScenarioKind {
    /// All come at once.
    AtOnce,
    /// They come spread over half of the bound.
    Spread,
    /// All at once; a tenth is killed at half of the bound.
    Churn,
    /// All at once; one in twenty has a fifth of the rate.
    Slow,
    /// All at once, in racks with a link between them that has a third of their hosts' rates.
    Racks,
}

impl ScenarioKind {
    /// As the results name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AtOnce => "at-once",
            Self::Spread => "spread",
            Self::Churn => "churn",
            Self::Slow => "slow",
            Self::Racks => "racks",
        }
    }
}
