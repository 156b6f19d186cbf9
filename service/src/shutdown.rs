//! The end of a process by signal.

use std::{io, process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Returns a token that SIGTERM or SIGINT cancels; a second such signal ends the process at once.
///
/// Needs a tokio runtime. Fails if the system refuses a signal handler.
pub fn on_signals() -> io::Result<CancellationToken> {
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    // Lives as long as the process: a second signal must work until the very end.
    tokio::spawn(watch(terminate, interrupt, token.clone()));
    Ok(token)
}

async fn watch(mut terminate: Signal, mut interrupt: Signal, token: CancellationToken) {
    let (name, _) = next(&mut terminate, &mut interrupt).await;
    info!(signal = name, "stopping; a second signal stops at once");
    token.cancel();
    let (name, number) = next(&mut terminate, &mut interrupt).await;
    warn!(signal = name, "stopped before everything was closed");
    process::exit(128 + number.as_raw_value());
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, SignalKind) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
        _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};

    #[tokio::test]
    async fn a_signal_cancels_the_token() {
        let token = on_signals().unwrap();
        assert!(!token.is_cancelled());
        kill_process(getpid(), Signal::TERM).unwrap();
        token.cancelled().await;
    }
}
