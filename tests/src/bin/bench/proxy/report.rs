//! The tables for people.

use std::fmt::{self, Display, Formatter};

use super::{
    comparison::Comparison,
    figures::{Figures, Growth, Measure, Table},
};
use crate::statistics::Series;

impl Display for Figures {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.tables.iter().try_for_each(|table| write!(f, "\n{table}"))?;
        let growth = self.growth();
        if !growth.is_empty() {
            writeln!(f, "\nCPU time of a request, to that on 64 kept connections")?;
        }
        growth.iter().try_for_each(|Growth { label, scenario, ratios }| {
            writeln!(f, "  {label:<24} {:<34} {:>6.2} {}", scenario.title(), ratios.median(), Range(ratios))
        })
    }
}

/// Between which a series is.
struct Range<'a>(&'a Series);

impl Display for Range<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "({:.2} to {:.2})", self.0.min(), self.0.max())
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rounds = self.rows.iter().flat_map(|row| row.series.values().map(Series::len)).max().unwrap_or(0);
        writeln!(f, "{} ({rounds} rounds)", self.scenario.title())?;
        let measures = self.measures();
        heads(f, "", &measures)?;
        for row in &self.rows {
            write!(f, "  {:<34}", row.label)?;
            for measure in &measures {
                cell(f, row.median(*measure), precision(row.median(*measure)))?;
            }
            writeln!(f)?;
        }
        let comparisons = self.comparisons();
        if comparisons.is_empty() {
            return Ok(());
        }
        let compared: Vec<Measure> = measures.into_iter().filter(|measure| measure.is_compared()).collect();
        heads(f, "ratio", &compared)?;
        for comparison in &comparisons {
            let Comparison { subject, base, .. } = comparison;
            write!(f, "  {:<34}", format!("{subject} : {base}"))?;
            for measure in &compared {
                cell(f, comparison.ratio(*measure), 2)?;
            }
            // Of the first, which is what is looked at, also how far the rounds were apart.
            match comparison.ratios.first() {
                Some(first) => writeln!(f, "  {}", Range(&first.values))?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

fn heads(f: &mut Formatter<'_>, first: &str, measures: &[Measure]) -> fmt::Result {
    write!(f, "  {first:<34}")?;
    measures.iter().try_for_each(|measure| write!(f, "{:>10}", measure.label()))?;
    writeln!(f)
}

fn cell(f: &mut Formatter<'_>, value: Option<f64>, precision: usize) -> fmt::Result {
    match value {
        Some(value) => write!(f, "{value:>10.precision$}"),
        None => write!(f, "{:>10}", "-"),
    }
}

/// Three digits are as much as a noisy machine has to say.
fn precision(value: Option<f64>) -> usize {
    usize::from(value.is_some_and(|value| value < 100.0))
}
