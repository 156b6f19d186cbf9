//! Two schedulers: each has its tasks, and when one is killed, they go on under the other.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use darter_integration::{
    Lab, Process, Program, Throttle,
    darter::{self, Peer, Scheduler, Surroundings},
    nginx,
    process::free_address,
    run_test,
};
use futures_util::future::try_join_all;

/// So many that each of two schedulers has some.
const FILES: usize = 16;
const MIB: usize = 1 << 20;

/// An origin with files, two schedulers, a seed peer and two nodes.
struct Fixture {
    lab: Lab,
    nodes: [Peer; 2],
    seed: Peer,
    schedulers: Vec<Scheduler>,
    origin: Throttle,
    _nginx: Process,
}

impl Fixture {
    async fn start(lab: &Lab, file_len: usize) -> Result<Self> {
        let address = free_address()?;
        let root = lab.subdir("files")?;
        for number in 0..=FILES {
            std::fs::write(root.join(number.to_string()), content(number, file_len))?;
        }
        let server = format!("server {{ listen {address}; root {}; }}", root.display());
        let program = Program::new("nginx", "nginx").args(nginx::args(lab, "events {}", &server)?);
        let mut process = Process::start(lab, program)?;
        process.until_http(&format!("http://{address}/0")).await?;
        let origin = Throttle::to(address).await?;
        let schedulers =
            vec![Scheduler::start_as(lab, "one", None).await?, Scheduler::start_as(lab, "two", None).await?];
        let around = Surroundings {
            schedulers: schedulers.iter().map(|scheduler| scheduler.grpc).collect(),
            manager: None,
            registries: vec![(origin.address.to_string(), origin.url())],
            links: false,
            mount: None,
        };
        let mut seed = Peer::start_seed(lab, "seed", &around).await?;
        let mut nodes =
            [Peer::start(lab, "node1", &around).await?, Peer::start(lab, "node2", &around).await?];
        for peer in nodes.iter_mut().chain([&mut seed]) {
            peer.until_scheduled_by(2).await?;
        }
        Ok(Self { lab: lab.clone(), nodes, seed, schedulers, origin, _nginx: process })
    }

    /// Gets a file on a node and checks it.
    async fn get(&self, node: usize, number: usize, file_len: usize) -> Result<()> {
        let file: PathBuf = self.lab.dir().join(format!("got-{node}-{number}"));
        let peer = self.nodes.get(node).context("no such node")?;
        let get = darter::command(&self.lab, "get")?.arg(format!("{}/{number}", self.origin.url()));
        get.arg("-O").arg(&file).arg("--socket").arg(&peer.control).run().await?;
        ensure!(std::fs::read(&file)? == content(number, file_len), "file {number} is not what it should be");
        Ok(())
    }

    async fn get_all(&self, node: usize, files: usize, file_len: usize) -> Result<()> {
        try_join_all((0..files).map(|number| self.get(node, number, file_len))).await.map(drop)
    }

    /// Bytes that came from the origin, whoever asked.
    async fn origin_bytes(&self) -> Result<u64> {
        let mut sum = 0;
        for peer in self.nodes.iter().chain([&self.seed]) {
            sum += peer.service.metrics().await?.received_from("origin");
        }
        Ok(sum)
    }
}

/// Bytes that differ from file to file.
fn content(number: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn both_schedulers_have_tasks_and_what_one_knew_outlives_it() -> Result<()> {
    run_test(async |lab| {
        let mut fixture = Fixture::start(&lab, MIB).await?;
        fixture.get_all(0, FILES, MIB).await?;
        for scheduler in &fixture.schedulers {
            let leases = scheduler.service.metrics().await?.sum("darter_scheduler_leases_total", &[]);
            ensure!(leases > 0.0 && leases < FILES as f64, "{leases} of {FILES} leases");
        }
        fixture.schedulers[0].service.process.kill()?;
        fixture.get_all(1, FILES, MIB).await?;
        assert_eq!(fixture.origin_bytes().await?, (FILES * MIB) as u64, "all of this was known");
        fixture.get(1, FILES, MIB).await?;
        assert_eq!(fixture.origin_bytes().await?, ((FILES + 1) * MIB) as u64);
        Ok(())
    })
}

#[test]
fn transfers_go_on_when_one_of_two_schedulers_is_killed() -> Result<()> {
    run_test(async |lab| {
        let (files, len) = (8, 4 * MIB);
        let mut fixture = Fixture::start(&lab, len).await?;
        fixture.origin.limit(8_000_000);
        let mut scheduler = fixture.schedulers.remove(0);
        let death = async {
            fixture.origin.until_sent(8_000_000).await?;
            scheduler.service.process.kill()
        };
        tokio::try_join!(fixture.get_all(0, files, len), fixture.get_all(1, files, len), death)?;
        assert_eq!(fixture.origin_bytes().await?, (files * len) as u64);
        Ok(())
    })
}
