//! Ratios: of egress to each peer and to the best of them, or of a row to the first.

use serde_json::{Value, json};

use super::{
    figures::{Measure, Row, Table},
    peer::Peer,
};
use crate::statistics::Series;

/// How one row compares with another.
pub(super) struct Comparison {
    pub(super) subject: &'static str,
    pub(super) base: &'static str,
    pub(super) ratios: Vec<Ratio>,
}

/// By one measure.
pub(super) struct Ratio {
    pub(super) measure: Measure,
    /// Those of the rounds.
    pub(super) values: Series,
    /// What was compared with: not always the same row where it is the best.
    base: &'static str,
}

/// What stands for whichever peer is the best by a measure.
pub(super) const BEST: &str = "the best peer";

impl Table {
    /// All comparisons that make sense.
    pub(super) fn comparisons(&self) -> Vec<Comparison> {
        if !self.scenario.compares_peers() {
            let Some((first, others)) = self.rows.split_first() else { return Vec::new() };
            return others.iter().map(|row| self.compare(row, first.label, |_| Some(first))).collect();
        }
        let peer_of = |row: &Row| Peer::ALL.into_iter().find(|peer| peer.label() == row.label);
        let is_peer = |row: &&Row| peer_of(row).is_some_and(|peer| !peer.is_egress() && peer.program().is_some());
        let peers: Vec<&Row> = self.rows.iter().filter(is_peer).collect();
        let mut comparisons = Vec::new();
        for row in self.rows.iter().filter(|row| peer_of(row).is_some_and(Peer::is_egress)) {
            comparisons.extend(peers.iter().map(|peer| self.compare(row, peer.label, |_| Some(*peer))));
            if peers.len() > 1 {
                comparisons.push(self.compare(row, BEST, |measure| best(&peers, measure)));
            }
        }
        comparisons
    }

    fn compare<'a>(
        &self,
        subject: &Row,
        base: &'static str,
        base_by: impl Fn(Measure) -> Option<&'a Row>,
    ) -> Comparison {
        let ratio = |measure: Measure| {
            let base = base_by(measure)?;
            Some(Ratio { measure, values: subject.ratios(base, measure)?, base: base.label })
        };
        let measures = self.measures().into_iter().filter(|measure| measure.is_compared());
        Comparison { subject: subject.label, base, ratios: measures.filter_map(ratio).collect() }
    }
}

/// The one with the best median.
fn best<'a>(rows: &[&'a Row], measure: Measure) -> Option<&'a Row> {
    let badness = |row: &&&Row| {
        row.median(measure).map_or(f64::INFINITY, |median| if measure.is_gain() { -median } else { median })
    };
    rows.iter().min_by(|one, other| badness(one).total_cmp(&badness(other))).copied()
}

impl Comparison {
    /// The median of the rounds' ratios.
    pub(super) fn ratio(&self, measure: Measure) -> Option<f64> {
        self.ratios.iter().find(|ratio| ratio.measure == measure).map(|ratio| ratio.values.median())
    }

    /// For programs.
    pub(super) fn to_json(&self) -> Value {
        let ratio = |Ratio { measure, values, base }: &Ratio| json!({"measure": measure.key(), "ratio": values.median(), "ratios": values.values(), "base": base});
        json!({"subject": self.subject, "base": self.base, "by": self.ratios.iter().map(ratio).collect::<Vec<_>>()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::{figures::Figures, scenario::Scenario};

    #[test]
    fn the_best_peer_differs_by_measure_and_bounds_are_no_peers() {
        let mut figures = Figures::default();
        let mut add = |peer: Peer, cpu: f64, rate: f64| {
            figures.add(Scenario::Keepalive, peer.label(), vec![(Measure::Cpu, cpu), (Measure::PerSecond, rate)]);
        };
        for slowness in [1.0, 3.0, 2.0] {
            add(Peer::EgressHttp1, 10.0 * slowness, 300.0);
            add(Peer::Nginx, 20.0 * slowness, 100.0);
            add(Peer::Haproxy, 40.0 * slowness, 200.0);
            add(Peer::DirectHttp, 1.0, 9999.0);
        }
        let comparisons = figures.tables[0].comparisons();
        let found = |base: &str| {
            let found = comparisons.iter().find(|comparison| comparison.base == base).expect("a comparison");
            (found.ratio(Measure::Cpu), found.ratio(Measure::PerSecond))
        };
        assert_eq!(found("nginx"), (Some(0.5), Some(3.0)));
        assert_eq!(found("HAProxy"), (Some(0.25), Some(1.5)));
        assert_eq!(found(BEST), (Some(0.5), Some(1.5)));
        assert_eq!(comparisons.len(), 3);
    }
}
