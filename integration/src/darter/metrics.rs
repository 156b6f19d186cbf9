//! What a service says at `/metrics`.

use std::collections::BTreeMap;

/// Samples in the OpenMetrics text format.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Values by name and labels as they were written.
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads the text format; what is no sample is passed over.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| line.rsplit_once(' '));
        let samples = samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
        Self { samples: samples.collect() }
    }

    /// The sum of all samples of this name that have all of these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &str, (key, value): &(&str, &str)| sample.contains(&format!("{key}=\"{value}\""));
        let samples = self.samples.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        samples
            .filter(|(sample, _)| labels.iter().all(|label| has(sample, label)))
            .map(|(_, value)| value)
            .sum()
    }

    /// Bytes that a peer has got from one kind of source: `local`, `peer`, `seed` or `origin`.
    pub fn received_from(&self, source: &str) -> u64 {
        self.sum("darter_peer_received_bytes_total", &[("source", source)]) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP darter_peer_received_bytes Bytes.
darter_peer_received_bytes_total{source=\"peer\"} 40
darter_peer_received_bytes_total{source=\"seed\"} 2
darter_peer_received_bytes_created 9
# EOF
";

    #[test]
    fn samples_are_summed_up_by_label() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.received_from("peer"), 40);
        assert_eq!(metrics.received_from("origin"), 0);
        assert_eq!(metrics.sum("darter_peer_received_bytes_total", &[]), 42.0);
    }
}
