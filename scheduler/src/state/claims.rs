//! Who brings what over the border of a rack, zone or region: what is missing behind a border is to cross it about once.
//!
//! Leaves fall into classes by their numbers, and within each scope every class belongs to one of those who fetch. Where
//! somebody holds or reads the whole, nothing need come from outside. Peers wait for who does not do its part only for a
//! moment, so being late with news of a claim costs copies, and never more.

use std::collections::HashMap;

use darter_proto::scheduler::{Claim, claim::Border};

use super::{
    ids::{HostKey, KeySet},
    members::Phase,
    message::Class,
    place::{Place, Scope},
    task::Task,
    world::World,
};

/// Number of classes, and so of peers of a scope that bring something.
const CLASSES: usize = 16;
/// So many hosts of a scope are looked at for one that takes over from another.
const LOOK_AT: usize = 16;

/// Claims that a peer was told, by border; a bit for each class.
pub(super) type Told = [u16; 3];

/// Whose each class is.
type Owners = [Option<HostKey>; CLASSES];

/// The claims of a task.
#[derive(Debug, Default)]
pub(super) struct Claims {
    owners: HashMap<Scope, Owners>,
    /// Scopes in which somebody had a lease when it was last looked.
    leased: Vec<Scope>,
    /// Who may bring more than it was told.
    untold: KeySet,
}

impl Claims {
    /// A host that fetches takes its share from those who have most. Nobody should wait for one that fetches in the
    /// `background`.
    fn enter(&mut self, scope: Scope, host: HostKey, background: impl Fn(HostKey) -> bool) {
        let owners = self.owners.entry(scope).or_default();
        let idle = background(host);
        let count = |owners: &Owners, host| owners.iter().filter(|owner| **owner == Some(host)).count();
        loop {
            let own = count(owners, host);
            let gain = |owner: &Option<HostKey>| match *owner {
                None => CLASSES,
                Some(owner) if owner == host || (idle && !background(owner)) => 0,
                Some(owner) if !idle && background(owner) => CLASSES,
                Some(owner) => count(owners, owner).saturating_sub(own + 1),
            };
            let Some((at, gain)) = owners.iter().map(gain).enumerate().max_by_key(|(_, gain)| *gain) else {
                return;
            };
            let Some(class) = owners.get_mut(at).filter(|_| gain > 0) else { return };
            self.untold.extend(class.replace(host));
            self.untold.insert(host);
        }
    }

    /// A host brings nothing any more: `heir` takes over, or else those who have least.
    fn leave(&mut self, scope: Scope, host: HostKey, heir: Option<HostKey>) {
        let Some(owners) = self.owners.get_mut(&scope) else { return };
        while let Some(at) = owners.iter().position(|owner| *owner == Some(host)) {
            let others = owners.iter().flatten().filter(|owner| **owner != host);
            let least = others.min_by_key(|owner| owners.iter().filter(|o| *o == &Some(**owner)).count());
            let next = heir.or(least.copied());
            if let Some(class) = owners.get_mut(at) {
                *class = next;
            }
            self.untold.extend(next);
        }
        if owners.iter().all(Option::is_none) {
            self.owners.remove(&scope);
        }
    }

    fn of(&self, scope: Scope, host: HostKey) -> u16 {
        let owners = self.owners.get(&scope).into_iter().flatten();
        owners.enumerate().filter(|(_, owner)| **owner == Some(host)).fold(0, |mine, (at, _)| mine | 1 << at)
    }

    fn owns(&self, scope: Scope, host: HostKey) -> bool {
        self.owners.get(&scope).is_some_and(|owners| owners.contains(&Some(host)))
    }
}

impl Task {
    /// A host begins to fetch.
    pub(super) fn enter_claims(&mut self, world: &World, host: HostKey) {
        let Self { claims, peers, .. } = self;
        let background = |host| peers.get(host).is_none_or(|peer| peer.class == Class::Background);
        for scope in world.hosts.get(host).into_iter().flat_map(|host| host.place.scopes()) {
            claims.enter(scope, host, background);
        }
    }

    /// A host does not fetch any more.
    pub(super) fn leave_claims(&mut self, world: &mut World, host: HostKey, place: &Place) {
        for scope in place.scopes().filter(|scope| self.claims.owns(*scope, host)).collect::<Vec<_>>() {
            let mut sample = KeySet::default();
            self.peers.sample(Some(scope), LOOK_AT, &mut world.rng, &mut sample);
            let may = |other: &HostKey| {
                *other != host
                    && !self.claims.owns(scope, *other)
                    && world.is_available(*other)
                    && self.peers.get(*other).is_some_and(|peer| peer.phase == Phase::Running)
            };
            let class = |other: &HostKey| self.peers.get(*other).map(|peer| peer.class);
            let heir = sample.into_iter().filter(may).min_by_key(class);
            self.claims.leave(scope, host, heir);
        }
        self.claims.untold.swap_remove(&host);
    }

    /// Sees to it that whoever may bring more than it knows is told.
    pub(super) fn tend_claims(&mut self, world: &World) {
        let holders = self.leases.iter().filter(|lease| !lease.stalled).map(|lease| lease.holder);
        let places = holders.filter_map(|holder| Some(world.hosts.get(holder)?.place));
        let leased: Vec<_> = places.flat_map(|place| place.scopes().collect::<Vec<_>>()).collect();
        let mut bereft = std::mem::replace(&mut self.claims.leased, leased);
        bereft.retain(|scope| !self.claims.leased.contains(scope));
        bereft.extend(self.peers.take_bereft());
        for scope in bereft {
            let owners = self.claims.owners.get(&scope).into_iter().flatten();
            self.claims.untold.extend(owners.flatten().copied());
        }
        for host in std::mem::take(&mut self.claims.untold) {
            let told = self.peers.get(host).filter(|peer| peer.phase == Phase::Running).map(|peer| peer.told);
            let Some(told) = told.map(Option::unwrap_or_default) else { continue };
            // Nothing need come from outside any more: that is soon seen, and not worth a message.
            let news =
                told.into_iter().zip(self.claims_of(world, host)).any(|(told, now)| told != now && now != 0);
            if news {
                self.tell_claims(host);
            }
        }
    }

    /// What a child is to be told of its claims, if that is news to it.
    pub(super) fn news_of_claims(&mut self, world: &World, child: HostKey) -> Vec<Claim> {
        let claims = self.claims_of(world, child);
        let Some(host) = world.hosts.get(child) else { return Vec::new() };
        let Some(peer) = self.peers.get_mut(child).filter(|peer| peer.phase == Phase::Running) else {
            return Vec::new();
        };
        if peer.told == Some(claims) {
            return Vec::new();
        }
        peer.told = Some(claims);
        let borders = [Border::Rack, Border::Zone, Border::Region].into_iter().zip(claims);
        let known = borders.zip(host.place.parts()).filter(|(_, scope)| scope.is_some());
        let claim = |((border, mine), _): ((Border, u16), _)| Claim {
            border: border.into(),
            classes: CLASSES as u32,
            mine: u32::from(mine),
        };
        known.map(claim).collect()
    }

    fn claims_of(&self, world: &World, host: HostKey) -> Told {
        let place = world.hosts.get(host).map(|host| host.place).unwrap_or_default();
        place.parts().map(|scope| match scope {
            Some(scope) if !self.has_source(scope) => self.claims.of(scope, host),
            _ => 0,
        })
    }

    /// Whether somebody within a scope has the whole or reads it from the origin.
    fn has_source(&self, scope: Scope) -> bool {
        self.claims.leased.contains(&scope) || self.peers.has_complete(scope)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn shares(claims: &Claims, scope: Scope) -> BTreeMap<HostKey, usize> {
        let mut shares = BTreeMap::new();
        for owner in claims.owners.get(&scope).into_iter().flatten().flatten() {
            *shares.entry(*owner).or_default() += 1;
        }
        shares
    }

    proptest! {
        /// Whoever comes and goes: every class is somebody's, those that come take a fair share, and few are told.
        #[test]
        fn all_classes_are_dealt_out(steps in proptest::collection::vec((any::<bool>(), 0u64..24), 1..80)) {
            let scope = Place::of_rack("a").rack.unwrap();
            let mut claims = Claims::default();
            let mut here = KeySet::default();
            let mut told = 0;
            for (comes, host) in &steps {
                let host = HostKey(*host);
                if *comes {
                    here.insert(host);
                    claims.enter(scope, host, |_| false);
                    let shares = shares(&claims, scope);
                    let own = shares.get(&host).copied().unwrap_or(0);
                    prop_assert!(shares.values().all(|share| *share <= own + 1), "{shares:?}");
                } else if here.swap_remove(&host) {
                    let heir = here.iter().find(|other| !claims.owns(scope, **other)).copied();
                    claims.leave(scope, host, heir);
                }
                told += std::mem::take(&mut claims.untold).len();
                let shares = shares(&claims, scope);
                prop_assert_eq!(shares.values().sum::<usize>(), if here.is_empty() { 0 } else { CLASSES });
                prop_assert!(shares.keys().all(|owner| here.contains(owner)));
            }
            prop_assert!(told <= steps.len() * (CLASSES / 2 + 1));
        }
    }

    #[test]
    fn nobody_waits_for_one_that_fetches_in_the_background() {
        let scope = Place::of_rack("a").rack.unwrap();
        let mut claims = Claims::default();
        let idle = |host: HostKey| host.0 < 10;
        for host in [1, 2, 11, 3, 12] {
            claims.enter(scope, HostKey(host), idle);
        }
        assert_eq!(shares(&claims, scope), BTreeMap::from([(HostKey(11), 8), (HostKey(12), 8)]));
    }
}
