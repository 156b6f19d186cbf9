//! The service over real connections on loopback.

use std::{net::SocketAddr, time::Duration};

use darter_proto::{
    scheduler::{
        Announce, Digests, Finished, Host, Leave, PeerMessage, Register, SchedulerMessage, Source,
        StatusRequest, Task, peer_message::Message as Said, scheduler_client::SchedulerClient,
        scheduler_message::Message as Heard,
    },
    ticket::{LIFE, Ticket},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::{Config, RunError, Scheduler};

const TASK: &str = "sha256:aa";
/// A guard against hanging, not a measure.
const LONG: Duration = Duration::from_secs(30);

struct Running {
    address: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<Result<(), RunError>>,
}

impl Running {
    async fn at(listen: &str) -> Self {
        let mut config = Config {
            listen: listen.parse().unwrap(),
            settle_time: Duration::from_millis(300),
            max_sessions: 4,
            ..Config::default()
        };
        config.admin.listen = "127.0.0.1:0".parse().unwrap();
        let scheduler = Scheduler::start(config).await.unwrap();
        let (address, admin) = (scheduler.grpc_address().unwrap(), scheduler.admin_address().unwrap());
        let stop = CancellationToken::new();
        let served = tokio::spawn(scheduler.serve(stop.clone()));
        Self { address, admin, stop, served }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(LONG, self.served).await.unwrap().unwrap().unwrap();
    }

    async fn client(&self) -> SchedulerClient<tonic::transport::Channel> {
        SchedulerClient::connect(format!("http://{}", self.address)).await.unwrap()
    }

    async fn peer(&self, id: &str, seed: bool) -> Peer {
        let mut peer = Peer::open(self).await.unwrap();
        peer.announce(id, seed).await;
        assert!(matches!(peer.hear().await, Heard::Welcome(_)));
        peer
    }
}

struct Peer {
    outgoing: mpsc::Sender<PeerMessage>,
    incoming: Streaming<SchedulerMessage>,
}

impl Peer {
    async fn open(scheduler: &Running) -> Result<Self, Status> {
        let (outgoing, messages) = mpsc::channel(16);
        let session = scheduler.client().await.session(ReceiverStream::new(messages)).await?;
        Ok(Self { outgoing, incoming: session.into_inner() })
    }

    async fn announce(&self, id: &str, seed: bool) {
        let transfer_address = "127.0.0.1:7401".into();
        let host = Host { id: id.into(), transfer_address, seed, ..Host::default() };
        self.say(Said::Announce(Announce { host: Some(host) })).await;
    }

    async fn say(&self, message: Said) {
        self.outgoing.send(PeerMessage { message: Some(message) }).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<SchedulerMessage>, Status> {
        timeout(LONG, self.incoming.message()).await.unwrap()
    }

    async fn hear(&mut self) -> Heard {
        self.next().await.unwrap().unwrap().message.unwrap()
    }

    /// Skips what `choose` does not know.
    async fn hear_of<T>(&mut self, choose: impl Fn(Heard) -> Option<T>) -> T {
        loop {
            if let Some(chosen) = choose(self.hear().await) {
                return chosen;
            }
        }
    }

    async fn parents(&mut self) -> Vec<String> {
        let added = |heard| match heard {
            Heard::Parents(change) if !change.add.is_empty() => Some(change.add),
            _ => None,
        };
        self.hear_of(added).await.into_iter().map(|parent| parent.host).collect()
    }
}

fn wants(held: u32, from_origin: bool) -> Said {
    let source = Some(Source { url: "http://origin/".into(), headers: vec![] });
    let task = Some(Task { id: TASK.into(), source });
    Said::Register(Register { task, held, class: 1, digests_known: false, from_origin, moved: false })
}

fn digests(first: u32, count: usize) -> Said {
    Said::Digests(Digests {
        task: TASK.into(),
        length: 40,
        leaves: 4,
        first,
        digests: vec![7; count * 32].into(),
        verified: false,
    })
}

#[tokio::test]
async fn a_pull_goes_from_the_origin_to_a_seed_to_a_peer_and_on_over_a_restart() {
    let scheduler = Running::at("127.0.0.1:0").await;
    let (mut seed, mut peer) = (scheduler.peer("seed", true).await, scheduler.peer("peer", false).await);
    peer.say(wants(0, false)).await;
    let fetch = seed.hear_of(|heard| if let Heard::Fetch(fetch) = heard { fetch.task } else { None }).await;
    assert_eq!(fetch.source.unwrap().url, "http://origin/");
    assert_eq!(peer.parents().await, ["seed"]);
    seed.say(digests(0, 2)).await;
    let known = |heard| match heard {
        Heard::TaskInfo(info) if !info.digests.is_empty() => {
            Some((info.length, info.first, info.digests.len()))
        }
        _ => None,
    };
    assert_eq!(peer.hear_of(known).await, (40, 0, 64));

    let status = scheduler.client().await.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.hosts.len(), status.tasks[0].leases[0].as_str()), (2, "seed"));

    let address = scheduler.address.to_string();
    scheduler.stop().await;
    assert_eq!(peer.next().await.unwrap_err().code(), Code::Unavailable);

    let scheduler = Running::at(&address).await;
    let mut peer = scheduler.peer("peer", false).await;
    peer.say(wants(1, false)).await;
    let mut seed = scheduler.peer("seed", true).await;
    seed.say(wants(2, true)).await;
    seed.hear_of(|heard| matches!(heard, Heard::SendDigests(_)).then_some(())).await;
    seed.say(digests(0, 4)).await;
    assert_eq!(peer.parents().await, ["seed"]);
    assert_eq!(peer.hear_of(known).await, (40, 0, 128));
    seed.say(Said::Finished(Finished { task: TASK.into(), length: 40, leaves: 4 })).await;
    let verified = |heard| match heard {
        Heard::TaskInfo(info) if info.verified => Some(()),
        Heard::Lease(_) => panic!("a second origin fetch"),
        _ => None,
    };
    peer.hear_of(verified).await;
    scheduler.stop().await;
}

#[tokio::test]
async fn who_gets_parents_gets_a_ticket_for_them_that_everybody_can_check() {
    let scheduler = Running::at("127.0.0.1:0").await;
    let mut parent = Peer::open(&scheduler).await.unwrap();
    parent.announce("parent", false).await;
    let welcome = parent.hear_of(|heard| if let Heard::Welcome(w) = heard { Some(w) } else { None }).await;
    let key = welcome.tickets.unwrap();
    parent.say(wants(1, true)).await;
    let mut child = scheduler.peer("child", false).await;
    let ticket_of = |heard| match heard {
        Heard::Parents(change) if !change.add.is_empty() => Some(change.ticket),
        _ => None,
    };
    // Registering again brings another one, with the same parents.
    for _ in 0..2 {
        child.say(wants(0, false)).await;
        let ticket = Ticket::decode(&child.hear_of(ticket_of).await).unwrap();
        assert_eq!(ticket.key[..], key.public_key);
        assert!(ticket.is_for("child", TASK) && !ticket.is_for("parent", TASK));
        assert!(ticket.end >= key.now + LIFE.as_secs() && ticket.end < key.now + 2 * LIFE.as_secs());
    }
    scheduler.stop().await;
}

#[tokio::test]
async fn bad_sessions_are_ended_with_a_reason_and_there_is_a_limit() {
    let scheduler = Running::at("127.0.0.1:0").await;
    let mut rude = Peer::open(&scheduler).await.unwrap();
    rude.say(Said::Leave(Leave {})).await;
    let status = rude.next().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("announcement"), "{status}");
    drop(rude);
    let mut sessions = Vec::new();
    let refused = loop {
        match Peer::open(&scheduler).await {
            Ok(session) => sessions.push(session),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!((3..=4).contains(&sessions.len()), "{}", sessions.len());
    drop(sessions);
    // The slots come back.
    while Peer::open(&scheduler).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scheduler.stop().await;
}

#[tokio::test]
async fn a_peer_that_goes_away_is_nobodys_parent() {
    let scheduler = Running::at("127.0.0.1:0").await;
    let (gone, mut peer) = (scheduler.peer("gone", false).await, scheduler.peer("peer", false).await);
    gone.say(wants(1, true)).await;
    peer.say(wants(0, false)).await;
    assert_eq!(peer.parents().await, ["gone"]);
    drop(gone);
    let removed = |heard| match heard {
        Heard::Parents(change) if !change.remove.is_empty() => Some(change.remove),
        _ => None,
    };
    assert_eq!(peer.hear_of(removed).await, ["gone"]);
    scheduler.stop().await;
}

#[tokio::test]
async fn metrics_tell_of_the_peers() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let scheduler = Running::at("127.0.0.1:0").await;
    let _peer = scheduler.peer("peer", false).await;
    let shown = async {
        loop {
            let mut stream = tokio::net::TcpStream::connect(scheduler.admin).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            if text.contains("darter_scheduler_hosts 1\n")
                && text.contains("darter_scheduler_messages_total 1\n")
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, shown).await.unwrap();
    scheduler.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_says_too_much_is_read_slowly() {
    let (mut pace, start) = (super::Pace::new(), tokio::time::Instant::now());
    for _ in 0..super::MESSAGES_PER_SECOND * 3 {
        pace.next().await;
    }
    assert_eq!(start.elapsed().as_secs(), 2);
}
