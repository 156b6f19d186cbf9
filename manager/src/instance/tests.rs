use super::*;

fn wire() -> proto::Instance {
    proto::Instance {
        kind: proto::Kind::Seed.into(),
        id: "5f0c".into(),
        address: "10.0.0.1:7430".into(),
        rack: "eu/r-1".into(),
        ..proto::Instance::default()
    }
}

fn refused(change: impl FnOnce(&mut proto::Instance)) -> String {
    let mut instance = wire();
    change(&mut instance);
    Instance::try_from(instance).unwrap_err().to_string()
}

#[test]
fn a_good_instance_comes_back_with_its_defaults_filled_in() {
    let instance = Instance::try_from(wire()).unwrap();
    assert_eq!((instance.cluster.as_str(), instance.name.as_str()), ("default", "5f0c"));
    let back = proto::Instance::from(instance);
    assert_eq!(back, proto::Instance { cluster: "default".into(), name: "5f0c".into(), ..wire() });
}

#[test]
fn each_bad_word_is_named() {
    assert_eq!(refused(|i| i.kind = 9), "kind is 9; it must be 1 (scheduler), 2 (seed) or 3 (peer)");
    assert_eq!(refused(|i| i.id.clear()), "id is empty");
    assert_eq!(refused(|i| i.id = "x".repeat(129)), "id has 129 bytes; at most 128 are allowed");
    assert!(refused(|i| i.name = "a/b".into()).starts_with("name contains '/'"));
    assert!(refused(|i| i.version = "1 2".into()).starts_with("version contains ' '"));
    assert!(refused(|i| i.zone = "a\0".into()).starts_with("zone contains '\\0'"));
    assert!(refused(|i| i.cluster = "a/b".into()).starts_with("cluster contains '/'"));
    for address in ["", "host:1", "10.0.0.1", "10.0.0.1:99999", "10.0.0.1:1 "] {
        assert!(
            refused(|i| i.address = address.into()).starts_with("address is not an ip:port"),
            "{address}"
        );
    }
    assert_eq!(refused(|i| i.address = "10.0.0.1:0".into()), "address has port 0");
    for address in ["0.0.0.0:1", "[::]:1", "224.0.0.1:1"] {
        let error = refused(|i| i.address = address.into());
        assert!(error.starts_with("address is not an address that others can connect to"), "{error}");
    }
}
