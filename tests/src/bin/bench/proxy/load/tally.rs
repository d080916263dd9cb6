//! What requests took.

use std::time::Duration;

/// The requests of one measurement.
#[derive(Default)]
pub(super) struct Tally {
    latencies: Vec<Duration>,
    is_sorted: bool,
    /// Of content.
    pub(super) bytes: u64,
}

impl Tally {
    pub(super) fn add(&mut self, latency: Duration, bytes: u64) {
        self.latencies.push(latency);
        self.is_sorted = false;
        self.bytes += bytes;
    }

    pub(super) fn requests(&self) -> usize {
        self.latencies.len()
    }

    /// That which a share of the latencies is not above, in microseconds.
    pub(super) fn quantile(&mut self, share: f64) -> f64 {
        if !self.is_sorted {
            self.latencies.sort_unstable();
            self.is_sorted = true;
        }
        let rank = (self.latencies.len() as f64 * share).ceil() as usize;
        self.latencies.get(rank.saturating_sub(1)).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let mut tally = Tally::default();
        (1..=1000).rev().for_each(|micros| tally.add(Duration::from_micros(micros), 1));
        assert_eq!(tally.quantile(0.5).round(), 500.0);
        assert_eq!(tally.quantile(0.99).round(), 990.0);
        assert_eq!(tally.quantile(0.999).round(), 999.0);
        assert_eq!(tally.quantile(1.0).round(), 1000.0);
        assert!(Tally::default().quantile(0.5).is_nan());
    }
}
