//! What the starts of images read, as some node saw it. The scheduler only passes it on.

use darter_proto::scheduler::{self as proto, scheduler_message as says};
use indexmap::IndexMap;

use super::{State, ids::HostKey};

/// Most images whose start profiles are kept: 128 MiB at the most.
const MAX_PROFILES: usize = 2048;

/// Start profiles by image; those that were not used for longest come first.
#[derive(Debug, Default)]
pub(super) struct Profiles {
    known: IndexMap<String, proto::StartProfile>,
}

impl Profiles {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    fn get(&mut self, image: &str) -> Option<proto::StartProfile> {
        let (image, profile) = self.known.shift_remove_entry(image)?;
        self.known.insert(image, profile.clone());
        Some(profile)
    }

    /// The latest one counts: whoever sends one found that the former did not fit.
    fn keep(&mut self, profile: proto::StartProfile) {
        self.known.shift_remove(&profile.image);
        if self.known.len() >= MAX_PROFILES {
            self.known.shift_remove_index(0);
        }
        self.known.insert(profile.image.clone(), profile);
    }
}

impl State {
    /// A host is about to start an image.
    pub(super) fn profile_wanted(&mut self, host: HostKey, image: String) {
        let profile = self.profiles.get(&image);
        let profile = profile.unwrap_or_else(|| proto::StartProfile { image, ..Default::default() });
        self.world.send(host, says::Message::StartProfile(profile));
    }

    /// A host saw a start.
    pub(super) fn start_profile(&mut self, profile: proto::StartProfile) {
        self.profiles.keep(profile);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(image: usize) -> proto::StartProfile {
        proto::StartProfile { image: image.to_string(), reads: vec![1].into() }
    }

    #[test]
    fn keeps_those_that_were_used_last() {
        let mut profiles = Profiles::default();
        (0..MAX_PROFILES).for_each(|image| profiles.keep(profile(image)));
        assert_eq!(profiles.get("0"), Some(profile(0)));
        profiles.keep(profile(MAX_PROFILES));
        assert_eq!(profiles.len(), MAX_PROFILES);
        assert_eq!(profiles.get("0"), Some(profile(0)));
        assert_eq!(profiles.get("1"), None);
        let newer = proto::StartProfile { reads: vec![2].into(), ..profile(0) };
        profiles.keep(newer.clone());
        assert_eq!(profiles.get("0"), Some(newer));
    }
}
