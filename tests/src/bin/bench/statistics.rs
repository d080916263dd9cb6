//! What is made of measurements on a machine that others use too.
//!
//! Rounds are interleaved, and what is compared is of one round: the differences and ratios of pairs stand still where the
//! values themselves go up and down with the machine.

/// Measurements of one kind, one for each round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    /// Adds that of the next round.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest: what it takes when nobody disturbs. NaN if there are none, as for the others.
    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The largest.
    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// The one in the middle.
    pub(crate) fn median(&self) -> f64 {
        median(self.0.clone())
    }

    /// The median of how much more it is than `base` of the same round.
    pub(crate) fn difference(&self, base: &Self) -> f64 {
        median(self.pairs(base).map(|(value, base)| value - base).collect())
    }

    /// How many times `base` of the same round it is.
    pub(crate) fn ratios(&self, base: &Self) -> Self {
        Self(self.pairs(base).map(|(value, base)| value / base).collect())
    }

    /// All of them.
    pub(crate) fn values(&self) -> &[f64] {
        &self.0
    }

    fn pairs(&self, base: &Self) -> impl Iterator<Item = (f64, f64)> {
        self.0.iter().copied().zip(base.0.iter().copied())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(values: &[f64]) -> Series {
        let mut series = Series::default();
        values.iter().for_each(|value| series.push(*value));
        series
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(series(&[9.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(series(&[4.0, 9.0, 1.0, 2.0]).median(), 3.0);
        assert_eq!((series(&[4.0, 9.0, 1.0, 2.0]).min(), series(&[4.0, 9.0, 1.0]).max()), (1.0, 9.0));
        assert!(series(&[]).median().is_nan() && series(&[]).min().is_nan());
    }

    #[test]
    fn rounds_are_compared_with_themselves() {
        // The machine was three times as slow in the second round and the third.
        let (base, other) = (series(&[10.0, 30.0, 30.0]), series(&[11.0, 33.0, 33.0]));
        assert_eq!(other.difference(&base), 3.0);
        assert_eq!(other.ratios(&base).median(), 1.1);
        assert_eq!(base.ratios(&base).values(), [1.0; 3]);
    }
}
