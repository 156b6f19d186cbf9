//! One start: pull, run, first line, first answer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use darter_integration::{Containerd, ImageRef, Throttle, http, process::free_address};
use serde::Serialize;
use tokio::time::sleep;

use crate::subject::Subject;

/// How often the page is asked for.
const POLL: Duration = Duration::from_millis(5);
/// A container that does not answer for so long never will.
const DEADLINE: Duration = Duration::from_secs(120);

/// Times from the start of the pull, in seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Start {
    pub(crate) pull_s: f64,
    pub(crate) first_line_s: f64,
    /// `None` if the subject serves nothing.
    pub(crate) first_http_s: Option<f64>,
    /// Bytes that came over the links until then (without HTTP, until the first line).
    pub(crate) fetched_bytes: u64,
}

/// A node that starts the subject.
pub(crate) struct Starter<'a> {
    pub(crate) containerd: &'a Containerd,
    pub(crate) snapshotter: &'a str,
    pub(crate) image: &'a ImageRef,
    pub(crate) links: &'a [&'a Throttle],
}

impl Starter<'_> {
    /// Pulls in the way that `pull` does, and runs the subject.
    pub(crate) async fn start(
        &self,
        subject: &Subject,
        pull: impl Future<Output = Result<()>>,
    ) -> Result<Start> {
        let address = free_address()?;
        let command = subject.command(address.port());
        let command = command.iter().map(String::as_str);
        let sent = || self.links.iter().map(|link| link.sent()).sum::<u64>();
        let (started, before) = (Instant::now(), sent());
        pull.await?;
        let pulled = started.elapsed();
        let running = self.containerd.serve(self.snapshotter, self.image, "subject", command);
        let answer = async {
            if !subject.serves() {
                return Ok(None);
            }
            let url = format!("http://{address}/");
            while !http::get(&url).await.is_ok_and(|answer| answer.body == "served\n") {
                ensure!(started.elapsed() < DEADLINE, "the container does not answer");
                sleep(POLL).await;
            }
            let answered = (started.elapsed(), sent() - before);
            self.containerd.quit("subject").await?;
            Ok(Some(answered))
        };
        let (output, answered) = tokio::try_join!(running, answer)?;
        let first_line = pulled + output.first_line.context("the container printed nothing")?;
        Ok(Start {
            pull_s: pulled.as_secs_f64(),
            first_line_s: first_line.as_secs_f64(),
            first_http_s: answered.map(|(at, _)| at.as_secs_f64()),
            fetched_bytes: answered.map_or_else(|| sent() - before, |(_, bytes)| bytes),
        })
    }
}
