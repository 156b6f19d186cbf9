//! What the scheduler's memory grows by with each peer of a task: all of it, the host and its parents included.

use std::time::Duration;

use anyhow::Result;
use darter_integration::usage;
use darter_proto::scheduler::{Holding, Holdings, PeerMessage, peer_message::Message as Said};
use darter_scheduler::state::{Event, SessionId, Settings, State, Time};

use super::{
    peer::{Peer, TASK},
    scenario::Scenario,
};

/// Resident memory of this process in bytes.
pub(crate) fn resident() -> Result<u64> {
    usage::resident_memory(std::process::id())
}

/// Bytes for each host, and on top of that for its part in one task.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) host: f64,
    pub(crate) peer_task: f64,
}

/// Announces all peers of a scenario, then registers them for the task: each holds something and has its parents.
pub(crate) fn measure(scenario: &Scenario) -> Result<Memory> {
    let empty = resident()?;
    let settings = Settings { settle_time: Duration::ZERO, ..Settings::default() };
    let mut state = State::new(settings, scenario.seed, Time::default());
    for id in 0..=scenario.peers {
        drop(state.on(Time::default(), Event::Opened(SessionId(u64::from(id)))));
        say(&mut state, id, Peer::new(id, scenario).announce(scenario.racks));
    }
    let announced = resident()?;
    for id in 0..=scenario.peers {
        let held = if id == 0 { scenario.leaves() } else { 1 };
        let holding = Holding {
            task: TASK.to_owned(),
            length: scenario.bytes,
            leaves: scenario.leaves(),
            verified: id == 0,
            held,
        };
        say(&mut state, id, Said::Holdings(Holdings { tasks: vec![holding], layers: Vec::new() }));
        if id > 0 {
            say(&mut state, id, Peer::new(id, scenario).register());
        }
    }
    let registered = resident()?;
    drop(state);
    let each = |bytes: u64| bytes as f64 / f64::from(scenario.peers + 1);
    Ok(Memory {
        host: each(announced.saturating_sub(empty)),
        peer_task: each(registered.saturating_sub(announced)),
    })
}

fn say(state: &mut State, id: u32, said: Said) {
    let message = PeerMessage { message: Some(said) };
    drop(state.on(Time::default(), Event::Message(SessionId(u64::from(id)), Box::new(message))));
}
