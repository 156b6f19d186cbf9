//! Pods with a user namespace of their own (`hostUsers: false`).
//!
//! containerd names the mapping in two labels, if its configuration says that the snapshotter has the capability
//! `remap-ids`. The snapshotter passes it on as mount options, by which containerd makes id-mapped mounts of the lower
//! directories (containerd, `core/mount/mount_linux.go`), and gives the upper directory to the namespace's root.

use super::{Labels, Owner};

const UID_LABEL: &str = "containerd.io/snapshot/uidmapping";
const GID_LABEL: &str = "containerd.io/snapshot/gidmapping";

/// The mount options for a snapshot with these labels.
pub(super) fn options(labels: &Labels) -> Vec<String> {
    let option = |name: &str, label: &str| labels.get(label).map(|mapping| format!("{name}={mapping}"));
    option("uidmap", UID_LABEL).into_iter().chain(option("gidmap", GID_LABEL)).collect()
}

/// Who is root in the namespace; `None` if there is none, or no root in it.
pub(crate) fn root(labels: &Labels) -> Option<Owner> {
    Some(Owner::new(root_id(labels.get(UID_LABEL)?)?, root_id(labels.get(GID_LABEL)?)?))
}

/// The host's id for 0: the mapping is a list of `CONTAINER:HOST:COUNT`.
fn root_id(mapping: &str) -> Option<u32> {
    mapping.split(',').find_map(|range| {
        let mut numbers = range.split(':').map(str::parse::<u32>);
        let (container, host, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        (container == 0 && count > 0).then_some(host)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_options_and_an_owner() {
        let labels = |uid: &str| {
            Labels::from([(UID_LABEL.into(), uid.into()), (GID_LABEL.into(), "0:200000:65536".into())])
        };
        let mapped = labels("10:5:1,0:100000:65536");
        assert_eq!(options(&mapped), ["uidmap=10:5:1,0:100000:65536", "gidmap=0:200000:65536"]);
        assert_eq!(root(&mapped), Some(Owner::new(100_000, 200_000)));
        for without_root in ["", "1:2:3", "0:7:0", "0:x:1", "0:1"] {
            assert_eq!(root(&labels(without_root)), None, "{without_root}");
        }
        assert!(options(&Labels::new()).is_empty() && root(&Labels::new()).is_none());
    }
}
