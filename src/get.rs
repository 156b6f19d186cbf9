//! `darter get`: a URL through this node's peer into a file.

mod part;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use darter_peer::Digest;
use darter_proto::peer::{
    ContentInfo, GetReply, GetRequest, Header, get_reply::Message, peer_client::PeerClient,
};
use darter_proxy::range::{Selection, select};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tonic::{Status, Streaming, transport::Channel};

use self::part::Part;
use crate::control::Control;

/// Fetch a URL through this node's peer, and so through all others.
///
/// The file appears under its name only when it is complete and, with --digest, checked. An interrupted download is
/// kept as FILE.part and continued by the same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// What to fetch: http:// or https://.
    url: String,
    /// The file to write.
    #[arg(short = 'O', long, value_name = "FILE")]
    output: PathBuf,
    /// What the whole must be: sha256:…, sha512:… or blake3:…. With it the content is the same whatever its URL is.
    #[arg(long, value_parser = |text: &str| text.parse::<Digest>())]
    digest: Option<Digest>,
    /// Headers for the origin: a file with one `Name: value` a line, so that no secret is seen in the process list.
    #[arg(long, value_name = "FILE")]
    headers: Option<PathBuf>,
    /// Only these bytes of it: FIRST-LAST, FIRST- or -COUNT, as in HTTP.
    #[arg(long, value_name = "RANGE", allow_hyphen_values = true)]
    range: Option<String>,
    /// Query parameters that do not tell one file from another, as those of a presigned URL's signature. Without it the
    /// node's rules say which these are.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    ignore_query: Vec<String>,
    /// Show no progress bar.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    control: Control,
}

impl Get {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let request = GetRequest {
            url: self.url.clone(),
            headers: self.headers.as_deref().map(read_headers).transpose()?.unwrap_or_default(),
            digest: self.digest.as_ref().map(Digest::to_string).unwrap_or_default(),
            offset: 0,
            end: None,
            ignored_query: self.ignore_query.clone(),
        };
        let mut client = self.control.connect().await?;
        let (info, mut replies) = open(&mut client, request.clone()).await?;
        let wanted = self.wanted(info.length)?;
        let (name, length) = match &self.range {
            Some(_) => (format!("{} {wanted:?}", info.task), wanted.end - wanted.start),
            None => (info.task, info.length),
        };
        let mut part = Part::open(&self.output, &name)?;
        if wanted != (0..info.length) || (part.len() > 0 && part.len() <= length) {
            let (offset, end) = (wanted.start + part.len(), Some(wanted.end));
            replies = open(&mut client, GetRequest { offset, end, ..request }).await?.1;
        }
        let bar = self.bar(length, part.len());
        while let Some(reply) = replies.message().await.map_err(|status| said(&status))? {
            if let Some(Message::Data(bytes)) = reply.message {
                part.write(&bytes)?;
                bar.inc(bytes.len() as u64);
            }
        }
        if part.len() != length {
            bail!("the peer sent {} of {length} bytes; the same command goes on from there", part.len());
        }
        // What is the whole's digest was checked by the peer.
        part.finish(self.digest.as_ref().filter(|_| self.range.is_none()))?;
        bar.finish();
        Ok(())
    }

    /// The bytes that are wanted of so many.
    fn wanted(&self, length: u64) -> anyhow::Result<Range<u64>> {
        let Some(range) = &self.range else { return Ok(0..length) };
        match select(Some(&format!("bytes={range}")), length) {
            Selection::Part(wanted) => Ok(wanted),
            Selection::Unsatisfiable => bail!("--range {range}: the content has {length} bytes"),
            Selection::Whole => bail!("--range {range}: expected FIRST-LAST, FIRST- or -COUNT"),
        }
    }

    fn bar(&self, length: u64, done: u64) -> ProgressBar {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(length), target);
        let template = "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_position(done);
        bar
    }
}

/// Starts a download; the peer describes the content first.
async fn open(
    client: &mut PeerClient<Channel>,
    request: GetRequest,
) -> anyhow::Result<(ContentInfo, Streaming<GetReply>)> {
    let mut replies = client.get(request).await.map_err(|status| said(&status))?.into_inner();
    match replies.message().await.map_err(|status| said(&status))? {
        Some(GetReply { message: Some(Message::Info(info)) }) => Ok((info, replies)),
        _ => bail!("the peer did not describe the content; does it have the same version as this command?"),
    }
}

fn said(status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

fn read_headers(path: &Path) -> anyhow::Result<Vec<Header>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let header = |(line, number): (&str, usize)| match line.split_once(':') {
        Some((name, value)) => {
            Ok(Header { name: name.trim().to_owned(), value: value.trim().to_owned().into() })
        }
        None => bail!("{}:{number}: expected `Name: value`", path.display()),
    };
    lines.map(header).collect()
}
