//! The mounts that containerd is told to make for a snapshot: those of its own overlayfs snapshotter.

use std::path::{Path, PathBuf};

use darter_proto::snapshots::Mount;

use super::Kind;

/// What a snapshot's mounts are made of.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) kind: Kind,
    /// The snapshot's own directory.
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
    /// The parents' directories, nearest first.
    pub(crate) lower: Vec<PathBuf>,
    /// Further options.
    pub(crate) options: Vec<String>,
}

impl Layout {
    /// The mounts of an active snapshot or a view.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let mount = match (self.kind, self.lower.as_slice()) {
            (Kind::Active, []) => self.bind(&self.upper, "rw"),
            (_, []) => self.bind(&self.upper, "ro"),
            (Kind::Active, _) => self.overlay(&[("workdir", &self.work), ("upperdir", &self.upper)]),
            (_, [only]) => self.bind(only, "ro"),
            (..) => self.overlay(&[]),
        };
        vec![mount]
    }

    fn bind(&self, source: &Path, access: &str) -> Mount {
        let options = self.options.iter().cloned().chain([access.into(), "rbind".into()]).collect();
        Mount { r#type: "bind".into(), source: source.display().to_string(), target: String::new(), options }
    }

    fn overlay(&self, own: &[(&str, &Path)]) -> Mount {
        let mut options = self.options.clone();
        if has_index_feature() {
            // Lower directories are shared between snapshots, which the index feature would refuse.
            options.push("index=off".to_owned());
        }
        options.extend(own.iter().map(|(name, path)| format!("{name}={}", path.display())));
        let lower: Vec<String> = self.lower.iter().map(|path| path.display().to_string()).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }
    }
}

fn has_index_feature() -> bool {
    Path::new("/sys/module/overlay/parameters/index").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(kind: Kind, lower: &[&str]) -> (String, Vec<String>) {
        let lower = lower.iter().map(PathBuf::from).collect();
        let layout =
            Layout { kind, upper: "/r/9/fs".into(), work: "/r/9/work".into(), lower, options: vec![] };
        let [mount] = layout.mounts().try_into().unwrap();
        let options = mount.options.into_iter().filter(|option| option != "index=off").collect();
        (format!("{} {}", mount.r#type, mount.source), options)
    }

    #[test]
    fn as_the_overlayfs_snapshotter_answers() {
        assert_eq!(options(Kind::Active, &[]), ("bind /r/9/fs".into(), vec!["rw".into(), "rbind".into()]));
        assert_eq!(options(Kind::View, &[]), ("bind /r/9/fs".into(), vec!["ro".into(), "rbind".into()]));
        assert_eq!(
            options(Kind::View, &["/r/1/fs"]),
            ("bind /r/1/fs".into(), vec!["ro".into(), "rbind".into()])
        );
        let (source, overlay) = options(Kind::View, &["/r/2/fs", "/r/1/fs"]);
        assert_eq!((source.as_str(), overlay), ("overlay overlay", vec!["lowerdir=/r/2/fs:/r/1/fs".into()]));
        let (_, overlay) = options(Kind::Active, &["/r/1/fs"]);
        assert_eq!(overlay, ["workdir=/r/9/work", "upperdir=/r/9/fs", "lowerdir=/r/1/fs"]);
    }
}
