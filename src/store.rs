//! `darter store`: how full this node's store is, and looking after it.

use bytesize::ByteSize;
use clap::Subcommand;
use darter_proto::peer::{
    EvictRequest, RemoveRequest, StoreStatusReply, StoreStatusRequest, VerifyStoreRequest,
};
use indicatif::BinaryBytes;
use tonic::Status;

use crate::control::Control;

/// Look after this node's store.
#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// Show how full it is and what it did since the peer's start.
    Status {
        #[command(flatten)]
        control: Control,
    },
    /// Read everything and compare it with its digests. What is damaged is dropped, and fetched again if it is in use.
    ///
    /// Fails if something was damaged.
    Verify {
        /// Most bytes per second, as 20MiB; 0 is unlimited.
        #[arg(long, default_value = "0")]
        rate: ByteSize,
        #[command(flatten)]
        control: Control,
    },
    /// Evict what was used least recently. What is in use stays.
    Evict {
        /// How much, as 2GiB.
        size: ByteSize,
        #[command(flatten)]
        control: Control,
    },
    /// Take a task, or a blob and the layer made of it, out, also if it is in use: its readers fetch it again.
    Remove {
        /// A task's id (`darter status --all` lists them), or the digest of a blob.
        id: String,
        #[command(flatten)]
        control: Control,
    },
}

impl Store {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Status { control } => {
                let status = control.connect().await?.store_status(StoreStatusRequest {}).await;
                print!("{}", summary(&status.map_err(said)?.into_inner()));
            }
            Self::Verify { rate, control } => {
                let request = VerifyStoreRequest { rate: rate.as_u64() };
                let found = control.connect().await?.verify_store(request).await.map_err(said)?.into_inner();
                println!("{} leaves with {} are right", found.leaves, BinaryBytes(found.bytes));
                for damaged in &found.damaged {
                    println!("damaged: leaf {} of {}", damaged.leaf, damaged.task);
                }
                anyhow::ensure!(found.damaged.is_empty(), "{} leaves were damaged", found.damaged.len());
            }
            Self::Evict { size, control } => {
                let request = EvictRequest { bytes: size.as_u64() };
                let evicted = control.connect().await?.evict(request).await.map_err(said)?.into_inner();
                println!("evicted {}", BinaryBytes(evicted.bytes));
            }
            Self::Remove { id, control } => {
                let removed = control.connect().await?.remove(RemoveRequest { id }).await;
                println!("removed {}", BinaryBytes(removed.map_err(said)?.into_inner().bytes));
            }
        }
        Ok(())
    }
}

fn summary(status: &StoreStatusReply) -> String {
    let bytes = |bytes: u64| BinaryBytes(bytes).to_string();
    [
        ("used", format!("{} of {}", bytes(status.used), bytes(status.quota))),
        ("free on disk", format!("{}, {} stay free", bytes(status.free), bytes(status.min_free))),
        ("only in memory", bytes(status.passing)),
        ("tasks", format!("{}, {} partial, {} in use", status.tasks, status.partial, status.pinned)),
        ("layers", status.layers.to_string()),
        ("shared", bytes(status.shared)),
        ("evicted", bytes(status.evicted)),
        ("not kept", format!("{} leaves", status.unkept)),
        ("damaged", format!("{} leaves", status.damaged)),
    ]
    .map(|(name, value)| format!("{name:<16} {value}\n"))
    .concat()
}

fn said(status: Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}
