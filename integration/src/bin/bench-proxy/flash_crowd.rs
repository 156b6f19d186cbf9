//! Many clients pull a blob at once that is not here yet: the origin is asked once.

use anyhow::{Context, Result};

use crate::{
    Bench,
    load::all_at_once,
    report::{Report, Row},
};

const CLIENTS: usize = 64;

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    println!("A blob that is not here yet, {CLIENTS} clients at once.");
    let blob = &bench.image.layers.get(1).context("no fresh layer")?.blob;
    let (path, len) = (bench.blob(1)?, blob.size);
    for (system, address) in [("nginx", bench.nginx.address), ("darter", bench.darter())] {
        let mark = bench.registry.mark();
        let path = path.clone();
        let took = tokio::task::spawn_blocking(move || all_at_once(address, &path, CLIENTS, len)).await??;
        let sent = bench.registry.traffic_since(mark).await.of(&blob.digest);
        report.add(Row {
            mb_per_s: Some(len as f64 * CLIENTS as f64 / 1e6 / took.as_secs_f64()),
            origin_fetches: Some(sent.bytes as f64 / len as f64),
            ..Row::new("uncached blob", system, CLIENTS)
        });
    }
    Ok(())
}
