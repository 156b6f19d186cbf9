//! `darter config`: check a configuration file, or print a role's defaults.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use darter_service::config;

use crate::peer::PeerRole;

/// Check a configuration file, or print a role's defaults.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether a role would start with this file; an error names the line.
    Check {
        /// The role that the file is for.
        role: Role,
        /// The file.
        file: PathBuf,
    },
    /// Print the defaults of a role as a file to start from, every key explained.
    Default {
        /// The role.
        role: Role,
    },
}

/// A role of the binary.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Role {
    Manager,
    Scheduler,
    Peer,
    Seed,
}

impl Role {
    fn sample(self) -> &'static str {
        match self {
            Self::Manager => include_str!("../packaging/config/manager.toml"),
            Self::Scheduler => include_str!("../packaging/config/scheduler.toml"),
            Self::Peer => include_str!("../packaging/config/peer.toml"),
            Self::Seed => include_str!("../packaging/config/seed.toml"),
        }
    }
}

impl ConfigCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Default { role } => print!("{}", role.sample()),
            Self::Check { role, file } => {
                match role {
                    Role::Manager => drop(config::load::<darter_manager::Config>(&file)?),
                    Role::Scheduler => drop(config::load::<darter_scheduler::Config>(&file)?),
                    Role::Peer | Role::Seed => drop(config::load::<PeerRole>(&file)?),
                }
                println!("{} is right", file.display());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_samples_are_the_defaults() {
        let manager =
            config::parse::<darter_manager::Config>(Role::Manager.sample(), "manager.toml").unwrap();
        assert_eq!(manager, darter_manager::Config::default());
        let scheduler =
            config::parse::<darter_scheduler::Config>(Role::Scheduler.sample(), "scheduler.toml").unwrap();
        assert_eq!(scheduler, darter_scheduler::Config::default());
        let peer = config::parse::<PeerRole>(Role::Peer.sample(), "peer.toml").unwrap();
        let expected = PeerRole {
            proxy: Some(darter_proxy::Config::default()),
            snapshotter: Some(darter_snapshotter::Config::default()),
            ..PeerRole::default()
        };
        assert_eq!(format!("{peer:?}"), format!("{expected:?}"));
        let seed = config::parse::<PeerRole>(Role::Seed.sample(), "seed.toml").unwrap();
        assert!(seed.peer.seed);
    }
}
