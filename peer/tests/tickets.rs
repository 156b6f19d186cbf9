//! Children whose tickets are not good, with a scheduler that does what the test says.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here is a failed test")]

mod common;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use common::{Faults, Node, Origin, blob};
use darter_proto::{
    scheduler::{
        Announce, Digests, Host, Lease, Parent, Parents, PeerMessage, SchedulerMessage, StatusReply,
        StatusRequest, TaskInfo, TicketKey, Welcome,
        peer_message::Message as Said,
        scheduler_message::Message as Heard,
        scheduler_server::{Scheduler, SchedulerServer},
    },
    ticket::Signer,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport};

const LEN: usize = 3 * 1024 * 1024 + 17;

/// The first host that comes gets a lease for what it registers; everybody else gets that host as the parent.
#[derive(Clone)]
struct Scripted {
    signer: Arc<Signer>,
    /// When the ticket ends that a child gets with its first Register, its second, and so on; the last one again.
    ends: Vec<u64>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    parent: Option<Host>,
    digests: Vec<Digests>,
    /// Registers of children.
    registers: usize,
}

impl Scripted {
    /// Starts it; returns where it is.
    async fn start(ends: &[u64]) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scripted =
            Self { signer: Arc::new(Signer::new().unwrap()), ends: ends.to_vec(), seen: Arc::default() };
        let server = transport::Server::builder().add_service(SchedulerServer::new(scripted.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (scripted, address)
    }

    async fn peer(address: SocketAddr) -> Node {
        let node = Node::start(|config| config.scheduler.addresses = vec![format!("http://{address}")]).await;
        while node.peer.schedulers().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        node
    }

    /// What a host that said this is told.
    fn answers(&self, host: &mut Host, said: Said) -> Vec<Heard> {
        let mut seen = self.seen.lock();
        match said {
            Said::Announce(Announce { host: announced }) => {
                *host = announced.unwrap();
                seen.parent.get_or_insert(host.clone());
                let public_key = bytes::Bytes::copy_from_slice(&self.signer.public_key());
                let tickets = Some(TicketKey { public_key, now: 100 });
                vec![Heard::Welcome(Welcome { tickets, ..Welcome::default() })]
            }
            Said::Register(register) => {
                let task = register.task.unwrap().id;
                let parent = seen.parent.clone().unwrap();
                if parent.id == host.id {
                    return vec![Heard::Lease(Lease { task })];
                }
                let end = *self.ends.get(seen.registers).or(self.ends.last()).unwrap();
                seen.registers += 1;
                let ticket = self.signer.sign(&host.id, &task, end);
                let place = parent.place;
                let parent = Parent {
                    host: parent.id,
                    transfer_address: parent.transfer_address,
                    place,
                    ..Parent::default()
                };
                let infos = seen.digests.iter().map(|digests| {
                    let Digests { task, length, leaves, first, digests, .. } = digests.clone();
                    Heard::TaskInfo(TaskInfo { task, length, leaves, first, digests, verified: false })
                });
                let parents = Parents { task, add: vec![parent], ticket, ..Parents::default() };
                infos.chain([Heard::Parents(parents)]).collect()
            }
            Said::Digests(digests) => {
                seen.digests.push(digests);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}

#[tonic::async_trait]
impl Scheduler for Scripted {
    type SessionStream = ReceiverStream<Result<SchedulerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<PeerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (heard, answers) = mpsc::channel(64);
        let (scripted, mut said) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut host = Host::default();
            while let Ok(Some(PeerMessage { message: Some(message) })) = said.message().await {
                for message in scripted.answers(&mut host, message) {
                    heard.send(Ok(SchedulerMessage { message: Some(message) })).await.ok();
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

/// A child reads what its parent fetched before; returns how many bytes came from the origin and from the parent, and how
/// often the child registered.
async fn read_with_tickets(ends: &[u64]) -> (u64, u64, usize) {
    let (bytes, id) = blob(LEN, 1);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let (scripted, address) = Scripted::start(ends).await;
    let parent = Scripted::peer(address).await;
    assert!(parent.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    let child = Scripted::peer(address).await;
    assert!(child.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    let from = child.peer.metrics().by_source();
    let registers = scripted.seen.lock().registers;
    (from.origin, from.peer, registers)
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_good_ticket_everything_comes_from_the_parent() {
    assert_eq!(read_with_tickets(&[u64::MAX]).await, (0, LEN as u64, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_whose_ticket_has_expired_asks_for_another_and_goes_on() {
    assert_eq!(read_with_tickets(&[99, u64::MAX]).await, (0, LEN as u64, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_gets_no_good_ticket_goes_to_the_origin() {
    let (origin, parent, registers) = read_with_tickets(&[99]).await;
    assert_eq!((origin, parent), (LEN as u64, 0));
    assert!((2..=3).contains(&registers), "{registers}");
}
