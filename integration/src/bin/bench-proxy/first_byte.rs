//! How long the first byte takes, compared with asking the registry itself.

use std::{net::SocketAddr, sync::atomic::AtomicBool, time::Duration};

use anyhow::Result;

use crate::{
    Bench, SMALLS,
    load::Client,
    report::{Report, Row, median},
};

/// How often the manifest is asked for.
const MANIFESTS: usize = 500;

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    println!("The first byte of a cached manifest, and of blobs that are not here yet.");
    let (direct, darter) = (bench.registry.address, bench.darter());
    // As in a pull: the manifest comes first, and says what is in the repository.
    let manifests = vec![bench.manifest(); MANIFESTS];
    let blobs: Vec<String> = (0..SMALLS).map(|number| bench.blob(number + 2)).collect::<Result<_>>()?;
    for (scenario, paths) in [("cached manifest", manifests), ("first byte of uncached blob", blobs)] {
        let [direct, darter] =
            tokio::task::spawn_blocking(move || in_turns([direct, darter], &paths)).await??;
        for (system, p50, added) in [("direct", direct, None), ("darter", darter, Some(darter - direct))] {
            report.add(Row {
                first_byte_p50_ms: Some(p50),
                added_p50_ms: added,
                ..Row::new(scenario, system, 1)
            });
        }
    }
    Ok(())
}

/// Asks both servers for each path in turns; the median time to the first byte of each, in milliseconds.
fn in_turns(servers: [SocketAddr; 2], paths: &[String]) -> Result<[f64; 2]> {
    let never = AtomicBool::new(false);
    let mut times: [Vec<Duration>; 2] = [vec![], vec![]];
    let [one, two] = servers.map(Client::connect);
    let mut clients = [one?, two?];
    for client in &mut clients {
        client.get(paths.first().map_or("/v2/", String::as_str), &never, |_| {})?;
    }
    for path in paths.iter().skip(1) {
        for (client, times) in clients.iter_mut().zip(&mut times) {
            times.push(client.get(path, &never, |_| {})?.first_byte);
        }
    }
    Ok(times.map(|times| median(times.iter().map(|time| time.as_secs_f64() * 1e3))))
}
