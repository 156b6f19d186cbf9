//! A blob that is here already: how fast it is sent, and what that costs.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use darter_integration::Process;

use crate::{
    Bench,
    load::flood,
    report::{Report, Row, median},
};

/// How long each system is measured at a time.
const WINDOW: Duration = Duration::from_secs(3);
/// How often the systems take turns.
const ROUNDS: usize = 5;

/// What one system did in one window.
#[derive(Clone, Copy)]
struct Sample {
    mb_per_s: f64,
    cpu_s_per_gb: f64,
}

pub(crate) async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let path = bench.blob(0)?;
    let systems = [
        ("nginx", bench.nginx.address, &bench.nginx.process),
        ("darter", bench.darter(), &bench.peer.service.process),
    ];
    for clients in [1, 64] {
        println!("A cached blob, {clients} clients at a time: {ROUNDS} rounds of {WINDOW:?} for each.");
        let mut samples: [Vec<Sample>; 2] = [vec![], vec![]];
        // The first round brings the blob here and is not counted.
        for round in 0..=ROUNDS {
            for ((_, address, process), samples) in systems.iter().zip(&mut samples) {
                let sample = sample(*address, process, &path, clients).await?;
                if round > 0 {
                    samples.push(sample);
                }
            }
        }
        let [nginx, darter] = samples.map(|samples| Sample {
            mb_per_s: median(samples.iter().map(|sample| sample.mb_per_s)),
            cpu_s_per_gb: median(samples.iter().map(|sample| sample.cpu_s_per_gb)),
        });
        for ((system, ..), Sample { mb_per_s, cpu_s_per_gb }) in systems.iter().zip([nginx, darter]) {
            report.add(Row {
                mb_per_s: Some(mb_per_s),
                cpu_s_per_gb: Some(cpu_s_per_gb),
                ratio_throughput: (*system == "darter").then_some(mb_per_s / nginx.mb_per_s),
                ratio_cpu: (*system == "darter").then_some(cpu_s_per_gb / nginx.cpu_s_per_gb),
                ..Row::new("cached blob", system, clients)
            });
        }
    }
    Ok(())
}

async fn sample(address: SocketAddr, process: &Process, path: &str, clients: usize) -> Result<Sample> {
    let path = path.to_owned();
    let before = process.cpu_time()?;
    let bytes = tokio::task::spawn_blocking(move || flood(address, &path, clients, WINDOW)).await??;
    let cpu = process.cpu_time()?.saturating_sub(before);
    Ok(Sample {
        mb_per_s: bytes as f64 / 1e6 / WINDOW.as_secs_f64(),
        cpu_s_per_gb: cpu.as_secs_f64() / (bytes as f64 / 1e9),
    })
}
