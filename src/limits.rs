//! `darter limits`: this node's rate limits.

use bytesize::ByteSize;
use clap::Subcommand;
use darter_proto::peer::LimitsRequest;
use indicatif::BinaryBytes;

use crate::control::Control;

/// Show or change this node's rate limits.
#[derive(Debug, Subcommand)]
pub(crate) enum Limits {
    /// Show the limits that are in force.
    Show {
        #[command(flatten)]
        control: Control,
    },
    /// Change limits at once, until the peer's next start. Where the cluster sets a limit, that one stays in force.
    ///
    /// Rates are bytes per second, as 50MiB; 0 is unlimited.
    Set {
        /// What is fetched from parents.
        #[arg(long)]
        download: Option<ByteSize>,
        /// What is sent to children.
        #[arg(long)]
        upload: Option<ByteSize>,
        /// What is fetched from origins.
        #[arg(long)]
        origin: Option<ByteSize>,
        /// What is fetched from parents in the background; counts against --download too.
        #[arg(long)]
        prefetch: Option<ByteSize>,
        #[command(flatten)]
        control: Control,
    },
}

impl Limits {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let (request, control) = match self {
            Self::Show { control } => (LimitsRequest::default(), control),
            Self::Set { download, upload, origin, prefetch, control } => {
                let rate = |rate: Option<ByteSize>| rate.map(|rate| rate.as_u64());
                let request = LimitsRequest {
                    download: rate(download),
                    upload: rate(upload),
                    origin: rate(origin),
                    prefetch: rate(prefetch),
                };
                (request, control)
            }
        };
        let reply = control.connect().await?.limits(request).await;
        let now = reply.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
        let rates = [
            ("download", now.download),
            ("upload", now.upload),
            ("origin", now.origin),
            ("prefetch", now.prefetch),
        ];
        for (name, rate) in rates {
            let rate = if rate == 0 { "unlimited".to_owned() } else { format!("{}/s", BinaryBytes(rate)) };
            println!("{name:<16} {rate}");
        }
        Ok(())
    }
}
