//! Where a host stands, short enough to be told in a handshake, and which border lies between two hosts.

use std::fmt;

/// What leaves should cross only once for all who stand behind it, narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Border {
    /// Of a rack.
    Rack,
    /// Of a zone.
    Zone,
    /// Of a region.
    Region,
}

impl Border {
    /// All of them, narrowest first.
    pub const ALL: [Self; 3] = [Self::Rack, Self::Zone, Self::Region];
}

/// Where a host stands: hashes of its region, zone and rack, each with what it lies in; 0 is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Site {
    region: u64,
    zone: u64,
    rack: u64,
}

impl Site {
    /// By the names of its parts; empty ones are unknown.
    pub fn new(region: &str, zone: &str, rack: &str) -> Self {
        let part = |name: &str, path: &[&str]| if name.is_empty() { 0 } else { hash(path) };
        Self {
            region: part(region, &[region]),
            zone: part(zone, &[region, zone]),
            rack: part(rack, &[region, zone, rack]),
        }
    }

    /// Whether anything is known of it.
    pub fn is_known(&self) -> bool {
        *self != Self::default()
    }

    /// The widest border around this host that the other one stands outside of.
    pub fn border_to(&self, other: &Self) -> Option<Border> {
        let outside = |here: u64, there: u64| here != 0 && here != there;
        if outside(self.region, other.region) {
            Some(Border::Region)
        } else if outside(self.zone, other.zone) {
            Some(Border::Zone)
        } else {
            outside(self.rack, other.rack).then_some(Border::Rack)
        }
    }

    /// Reads what [`Display`](fmt::Display) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| u64::from_str_radix(part, 16));
        let [region, zone, rack] = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
        parts.next().is_none().then_some(Self { region, zone, rack })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}.{:x}", self.region, self.zone, self.rack)
    }
}

/// Equal on all hosts. Two that collide would only be taken for near.
fn hash(path: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in path {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_border_counts() {
        let here = Site::new("r", "z", "1");
        assert_eq!(here.border_to(&Site::new("r", "z", "1")), None);
        assert_eq!(here.border_to(&Site::new("r", "z", "2")), Some(Border::Rack));
        assert_eq!(here.border_to(&Site::new("r", "y", "1")), Some(Border::Zone));
        assert_eq!(here.border_to(&Site::new("s", "z", "1")), Some(Border::Region));
        assert_eq!(here.border_to(&Site::new("r", "z", "")), Some(Border::Rack));
        assert_eq!(Site::new("r", "", "").border_to(&here), None);
        assert_eq!(Site::default().border_to(&here), None);
    }

    #[test]
    fn it_is_read_back() {
        for site in [Site::new("r", "z", "1"), Site::new("", "", "1"), Site::default()] {
            assert_eq!(Site::parse(&site.to_string()), Some(site));
        }
        assert_eq!(["", "1.2", "1.2.3.4", "x.1.2"].map(Site::parse), [None; 4]);
    }
}
