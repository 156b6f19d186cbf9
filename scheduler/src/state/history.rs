//! How well a host has served, from what its children reported.

use std::time::Duration;

/// Weight of a new sample against the history.
const WEIGHT: f64 = 0.05;
/// Before so many samples a history says nothing.
const ENOUGH: u32 = 20;

/// What a host serves: response time and bandwidth as its children saw them.
#[derive(Debug, Default)]
pub(super) struct Served {
    /// Response time of a leaf in seconds.
    pub(super) response: Normal,
    /// Bytes per second to one child.
    bandwidth: Option<f64>,
}

/// A quantity taken as normally distributed, old samples counting less and less.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Normal {
    samples: u32,
    mean: f64,
    variance: f64,
}

impl Served {
    /// Adds what a child received in the time between its requests and the arrivals.
    pub(super) fn add_bandwidth(&mut self, bytes: u64, busy: Duration) {
        let rate = bytes as f64 / busy.as_secs_f64().max(1e-6);
        let before = self.bandwidth.unwrap_or(rate);
        self.bandwidth = Some(before + WEIGHT * (rate - before));
    }

    /// Bytes per second to one child, if it has served.
    pub(super) fn bandwidth(&self) -> Option<f64> {
        self.bandwidth
    }
}

impl Normal {
    pub(super) fn add(&mut self, sample: f64) {
        self.samples = self.samples.saturating_add(1);
        // The first samples weigh the same, later ones WEIGHT.
        let weight = WEIGHT.max(1.0 / f64::from(self.samples));
        let delta = sample - self.mean;
        self.mean += weight * delta;
        self.variance = (1.0 - weight) * (self.variance + weight * delta * delta);
    }

    /// The mean, if there is any sample.
    pub(super) fn mean(&self) -> Option<f64> {
        (self.samples > 0).then_some(self.mean)
    }

    /// Whether there are enough samples to judge by.
    pub(super) fn is_telling(&self) -> bool {
        self.samples >= ENOUGH
    }

    /// Whether `sample` lies more than six standard deviations above the mean. The deviation is taken as at least a
    /// tenth of the mean: a host that was always equally fast is not bad because it once was a little slower.
    pub(super) fn is_far_above(&self, sample: f64) -> bool {
        sample > self.mean + 6.0 * self.variance.sqrt().max(self.mean / 10.0)
    }

    /// The distribution of all of several quantities together.
    pub(super) fn pooled(parts: &[Self]) -> Self {
        let count = parts.len().max(1) as f64;
        let mean = parts.iter().map(|part| part.mean).sum::<f64>() / count;
        let spread = |part: &Self| part.variance + (part.mean - mean).powi(2);
        let variance = parts.iter().map(spread).sum::<f64>() / count;
        let samples = parts.iter().fold(0u32, |sum, part| sum.saturating_add(part.samples));
        Self { samples, mean, variance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(samples: impl IntoIterator<Item = f64>) -> Normal {
        let mut normal = Normal::default();
        samples.into_iter().for_each(|sample| normal.add(sample));
        normal
    }

    #[test]
    fn mean_and_deviation_follow_the_samples() {
        let normal = history((0..1000).map(|n| if n % 2 == 0 { 8.0 } else { 12.0 }));
        assert!((normal.mean().unwrap() - 10.0).abs() < 0.5, "{normal:?}");
        assert!((normal.variance.sqrt() - 2.0).abs() < 0.3, "{normal:?}");
        assert!(normal.is_far_above(23.0) && !normal.is_far_above(21.0));
    }

    #[test]
    fn a_steady_host_may_be_a_little_slower_once() {
        let normal = history([1.0; 100]);
        assert!(!normal.is_far_above(1.5));
        assert!(normal.is_far_above(1.7));
    }

    #[test]
    fn pooling_counts_the_difference_between_the_parts() {
        let pooled = Normal::pooled(&[history([1.0; 50]), history([3.0; 50])]);
        assert!((pooled.mean().unwrap() - 2.0).abs() < 0.01);
        assert!((pooled.variance.sqrt() - 1.0).abs() < 0.01);
    }
}
