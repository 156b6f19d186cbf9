//! Spinners and bars while something is going on.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(100);

/// Shows what is being done while it is, and that it is done.
pub(crate) async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let spinner = spinner(what);
    let result = Box::pin(work).await;
    finish(&spinner, result.is_ok());
    result
}

/// Like [`step`], with a bar: `now` says how many of `total` bytes are there.
pub(crate) async fn transfer<T>(
    what: &str,
    total: Option<u64>,
    now: impl Fn() -> u64,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some(total) = total else { return step(what, work).await };
    let template = "{msg:<44} [{bar:30}] {decimal_bytes:>9} of {decimal_total_bytes:<9} {elapsed:>4}";
    let bar = ProgressBar::new(total)
        .with_style(style(template).progress_chars("=> "))
        .with_message(what.to_owned());
    let mut work = Box::pin(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            () = tokio::time::sleep(TICK) => bar.set_position(now().min(total)),
        }
    };
    if bar.is_hidden() {
        println!("{} {what}", if result.is_ok() { '✓' } else { '✗' });
    }
    match &result {
        Ok(_) => bar.finish(),
        Err(_) => bar.abandon(),
    }
    result
}

/// A spinner whose text can be changed.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let spinner =
        ProgressBar::new_spinner().with_style(style("{spinner} {msg}")).with_message(what.to_owned());
    spinner.enable_steady_tick(TICK);
    spinner
}

/// Stops a spinner and leaves its text, also where there is no terminal to show a spinner on.
pub(crate) fn finish(spinner: &ProgressBar, success: bool) {
    let mark = if success { '✓' } else { '✗' };
    if spinner.is_hidden() {
        println!("{mark} {}", spinner.message());
    }
    spinner.set_style(style(&format!("{mark} {{msg}}")));
    spinner.finish();
}

/// The templates are our own, and each is seen whenever the demo runs.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
