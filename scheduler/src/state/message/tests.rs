use super::*;

fn parse(message: said::Message) -> Result<Message, Invalid> {
    proto::PeerMessage { message: Some(message) }.try_into()
}

fn host() -> proto::Host {
    proto::Host { id: "a".into(), transfer_address: "10.0.0.1:7400".into(), ..Default::default() }
}

fn announced(host: proto::Host) -> Result<Message, Invalid> {
    parse(said::Message::Announce(proto::Announce { host: Some(host) }))
}

#[test]
fn hosts_that_nobody_could_reach_are_refused() {
    assert!(announced(host()).is_ok());
    for address in ["", "10.0.0.1", "10.0.0.1:0", "0.0.0.0:7400", "[::]:7400", "peer:7400", "224.0.0.1:7400"]
    {
        let host = proto::Host { transfer_address: address.into(), ..host() };
        assert!(announced(host).is_err(), "{address}");
    }
    for id in ["", "a b", "../a", &"a".repeat(129)] {
        assert!(announced(proto::Host { id: id.into(), ..host() }).is_err(), "{id}");
    }
    assert!(announced(proto::Host { name: "n".repeat(257), ..host() }).is_err());
}

#[test]
fn digests_must_fit_the_content() {
    let sent = |length, leaves, first, bytes| {
        let task = "sha256:1".into();
        let digests = vec![0; bytes].into();
        parse(said::Message::Digests(proto::Digests {
            task,
            length,
            leaves,
            first,
            digests,
            verified: false,
        }))
    };
    assert!(sent(100, 4, 0, 128).is_ok());
    assert!(sent(100, 4, 3, 32).is_ok());
    assert!(sent(0, 0, 7, 32).is_ok(), "the length is not known yet");
    for (length, leaves, first, bytes) in [
        (100, 4, 0, 31),
        (100, 4, 4, 32),
        (100, 4, u32::MAX, 32),
        (3, 4, 0, 0),
        (0, 4, 0, 0),
        (4, 0, 0, 0),
        (u64::MAX, MAX_LEAVES + 1, 0, 0),
        (0, 0, MAX_LEAVES, 32),
    ] {
        assert!(sent(length, leaves, first, bytes).is_err(), "{length} {leaves} {first} {bytes}");
    }
}

#[test]
fn sources_are_bounded_and_never_shown() {
    let header =
        |bytes: usize| proto::Header { name: "authorization".into(), value: vec![b'x'; bytes].into() };
    let sent = |url: &str, headers| {
        let source = Some(proto::Source { url: url.into(), headers });
        let task = Some(proto::Task { id: "sha256:1".into(), source });
        parse(said::Message::Register(proto::Register { task, ..Default::default() }))
    };
    let shown = format!("{:?}", sent("https://user:pw@host/?sig=s", vec![header(10)]).unwrap());
    assert!(!shown.contains("pw") && !shown.contains("sig") && !shown.contains("xxx"), "{shown}");
    assert!(sent("https://host/", vec![header(MAX_HEADER_BYTES)]).is_err());
    assert!(sent("https://host/", vec![header(1); MAX_HEADERS + 1]).is_err());
    assert!(sent(&"u".repeat(MAX_URL + 1), vec![]).is_err());
}

#[test]
fn reasons_are_cut() {
    let failure = proto::Failure { reason: "ä".repeat(10_000), ..Default::default() };
    let failed = said::Message::Failed(proto::Failed { task: "sha256:1".into(), failure: Some(failure) });
    let Ok(Message::Failed { failure, .. }) = parse(failed) else { panic!("refused") };
    assert_eq!(failure.reason.chars().count(), MAX_REASON);
}
