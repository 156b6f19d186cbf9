//! Where hosts stand, and how near they are to each other.

use std::hash::{DefaultHasher, Hash, Hasher};

use darter_proto::scheduler as proto;

/// A rack, zone or region, known by a hash of its name and of what it lies in. Two that collide would only be
/// preferred to each other without being near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Scope(u64);

/// Where a host stands; parts that it did not name are unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) region: Option<Scope>,
    pub(super) zone: Option<Scope>,
    pub(super) rack: Option<Scope>,
}

/// How far apart two hosts are, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Distance {
    Rack,
    Zone,
    Region,
    Far,
}

impl Place {
    pub(super) fn new(place: &proto::Place) -> Self {
        let proto::Place { region, zone, rack } = place;
        let scope = |name: &str, path: &[&str]| (!name.is_empty()).then(|| Scope::of(path));
        Self {
            region: scope(region, &[region]),
            zone: scope(zone, &[region, zone]),
            rack: scope(rack, &[region, zone, rack]),
        }
    }

    /// Rack, zone and region.
    pub(super) fn parts(&self) -> [Option<Scope>; 3] {
        [self.rack, self.zone, self.region]
    }

    /// Those of them that are known.
    pub(super) fn scopes(&self) -> impl Iterator<Item = Scope> + use<> {
        self.parts().into_iter().flatten()
    }

    pub(super) fn distance(&self, other: &Self) -> Distance {
        let same = |a: Option<Scope>, b: Option<Scope>| a.is_some() && a == b;
        if same(self.rack, other.rack) {
            Distance::Rack
        } else if same(self.zone, other.zone) {
            Distance::Zone
        } else if same(self.region, other.region) {
            Distance::Region
        } else {
            Distance::Far
        }
    }
}

#[cfg(test)]
impl Place {
    pub(super) fn of_rack(rack: &str) -> Self {
        Self::new(&proto::Place { rack: rack.into(), ..proto::Place::default() })
    }
}

impl Scope {
    fn of(path: &[&str]) -> Self {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        Self(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(region: &str, zone: &str, rack: &str) -> Place {
        Place::new(&proto::Place { region: region.into(), zone: zone.into(), rack: rack.into() })
    }

    #[test]
    fn the_narrowest_common_part_counts() {
        let here = place("r", "z", "1");
        assert_eq!(here.distance(&place("r", "z", "1")), Distance::Rack);
        assert_eq!(here.distance(&place("r", "z", "2")), Distance::Zone);
        assert_eq!(here.distance(&place("r", "y", "1")), Distance::Region);
        assert_eq!(here.distance(&place("s", "z", "1")), Distance::Far);
    }

    #[test]
    fn what_is_unknown_is_not_equal() {
        assert_eq!(place("", "", "").distance(&place("", "", "")), Distance::Far);
        assert_eq!(place("r", "", "").distance(&place("r", "", "")), Distance::Region);
    }
}
