//! The tables for people.

use std::fmt::{self, Display, Formatter};

use super::{
    comparison::Comparison,
    figures::{Figures, Measure, Table},
};
use crate::statistics::Series;

impl Display for Figures {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        self.tables.iter().try_for_each(|table| write!(f, "\n{table}"))
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
            writeln!(f)?;
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
