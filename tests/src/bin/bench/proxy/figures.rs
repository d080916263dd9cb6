//! What was measured: by scenario, by row, by measure, one value for each round.

use std::collections::BTreeMap;

use clap::ValueEnum as _;
use serde_json::{Value, json};

use super::{comparison::Comparison, scenario::Scenario};
use crate::statistics::Series;

/// One kind of figure, in the order of columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Measure {
    /// CPU time of the proxy for each request, in microseconds.
    Cpu,
    /// CPU time of the proxy for 100 MB, in milliseconds.
    CpuPer100Mb,
    /// The kernel's share of it, in percent.
    System,
    /// In microseconds, as for the next two.
    P50,
    P99,
    P999,
    PerSecond,
    MegabytesPerSecond,
    /// In milliseconds.
    Time,
    /// In MiB: idle, with connections, and both with shared pages counted once.
    Resident,
    ResidentLoaded,
    Proportional,
    ProportionalLoaded,
    /// Of a processor, in percent.
    Busy,
    /// What other processes of the machine used, in percent of it: noise.
    Others,
}

impl Measure {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Cpu => "CPU us",
            Self::CpuPer100Mb => "CPU ms",
            Self::System => "kernel %",
            Self::P50 => "p50 us",
            Self::P99 => "p99 us",
            Self::P999 => "p99.9 us",
            Self::PerSecond => "req/s",
            Self::MegabytesPerSecond => "MB/s",
            Self::Time => "ms",
            Self::Resident => "RSS idle",
            Self::ResidentLoaded => "RSS",
            Self::Proportional => "PSS idle",
            Self::ProportionalLoaded => "PSS",
            Self::Busy => "core %",
            Self::Others => "others %",
        }
    }

    /// The name in JSON.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Cpu => "cpu_us",
            Self::CpuPer100Mb => "cpu_ms_per_100_mb",
            Self::System => "kernel_percent",
            Self::P50 => "p50_us",
            Self::P99 => "p99_us",
            Self::P999 => "p999_us",
            Self::PerSecond => "requests_per_second",
            Self::MegabytesPerSecond => "megabytes_per_second",
            Self::Time => "milliseconds",
            Self::Resident => "idle_resident_mib",
            Self::ResidentLoaded => "resident_mib",
            Self::Proportional => "idle_proportional_mib",
            Self::ProportionalLoaded => "proportional_mib",
            Self::Busy => "core_percent",
            Self::Others => "others_percent",
        }
    }

    /// Whether a ratio of it says anything.
    pub(super) fn is_compared(self) -> bool {
        !matches!(self, Self::System | Self::Busy | Self::Others)
    }

    /// Whether more of it is better.
    pub(super) fn is_gain(self) -> bool {
        matches!(self, Self::PerSecond | Self::MegabytesPerSecond)
    }
}

/// The figures of one row in one round.
pub(super) type Measured = Vec<(Measure, f64)>;

/// One row of a scenario's table.
pub(super) struct Row {
    pub(super) label: &'static str,
    pub(super) series: BTreeMap<Measure, Series>,
}

impl Row {
    pub(super) fn median(&self, measure: Measure) -> Option<f64> {
        self.series.get(&measure).map(Series::median)
    }

    /// How many times that of another row it is, in each round.
    pub(super) fn ratios(&self, base: &Self, measure: Measure) -> Option<Series> {
        Some(self.series.get(&measure)?.ratios(base.series.get(&measure)?))
    }
}

/// The rows of one scenario.
pub(super) struct Table {
    pub(super) scenario: Scenario,
    pub(super) rows: Vec<Row>,
}

impl Table {
    /// The measures that any row has, in the order of columns.
    pub(super) fn measures(&self) -> Vec<Measure> {
        let mut measures: Vec<Measure> = self.rows.iter().flat_map(|row| row.series.keys().copied()).collect();
        measures.sort_unstable();
        measures.dedup();
        measures
    }
}

/// How many times as much CPU time a request costs as one on few connections, in each round.
pub(super) struct Growth {
    pub(super) label: &'static str,
    pub(super) scenario: Scenario,
    pub(super) ratios: Series,
}

impl Growth {
    fn to_json(&self) -> Value {
        let ratios = &self.ratios;
        json!({"name": self.label, "what": self.scenario.title(), "ratio": ratios.median(), "ratios": ratios.values()})
    }
}

/// All of it.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) tables: Vec<Table>,
    /// What was compared, and what was left out and why: lines.
    pub(super) notes: Vec<String>,
}

impl Figures {
    /// Adds what one round gave for one row.
    pub(super) fn add(&mut self, scenario: Scenario, label: &'static str, measured: Measured) {
        let place = self.tables.iter().position(|table| table.scenario == scenario).unwrap_or_else(|| {
            self.tables.push(Table { scenario, rows: Vec::new() });
            self.tables.len() - 1
        });
        let rows = &mut self.tables[place].rows;
        let place = rows.iter().position(|row| row.label == label).unwrap_or_else(|| {
            rows.push(Row { label, series: BTreeMap::new() });
            rows.len() - 1
        });
        for (measure, value) in measured {
            rows[place].series.entry(measure).or_default().push(value);
        }
    }

    /// Puts tables and rows, which were added in whatever order rounds had, into that of the lists.
    pub(super) fn sort(&mut self, rows: &[&str]) {
        self.tables.sort_by_key(|table| table.scenario);
        for table in self.tables.iter_mut().filter(|table| table.scenario.compares_peers()) {
            table.rows.sort_by_key(|row| rows.iter().position(|label| *label == row.label));
        }
    }

    /// What requests cost on more connections.
    pub(super) fn growth(&self) -> Vec<Growth> {
        let table = |scenario| self.tables.iter().find(|table| table.scenario == scenario);
        let Some(few) = table(Scenario::Keepalive) else { return Vec::new() };
        let with_many = [Scenario::Thousand, Scenario::FiveThousand].into_iter().filter_map(table);
        let of = |table: &Table| {
            let rows = few.rows.iter().map(|few| {
                let many = table.rows.iter().find(|row| row.label == few.label)?;
                Some(Growth { label: few.label, scenario: table.scenario, ratios: many.ratios(few, Measure::Cpu)? })
            });
            rows.flatten().collect::<Vec<_>>()
        };
        with_many.flat_map(of).collect()
    }

    /// For programs.
    pub(super) fn to_json(&self) -> Value {
        let row = |row: &Row| {
            let by_measure = |of: fn(&Series) -> Value| -> BTreeMap<_, _> {
                row.series.iter().map(|(measure, series)| (measure.key(), of(series))).collect()
            };
            let (medians, values) =
                (by_measure(|series| json!(series.median())), by_measure(|series| json!(series.values())));
            let rounds = row.series.values().map(Series::len).max().unwrap_or(0);
            json!({"name": row.label, "rounds": rounds, "medians": medians, "values": values})
        };
        let table = |table: &Table| {
            let ratios: Vec<_> = table.comparisons().iter().map(Comparison::to_json).collect();
            let rows: Vec<_> = table.rows.iter().map(row).collect();
            let name = table.scenario.to_possible_value().map(|value| value.get_name().to_owned());
            json!({"scenario": name, "what": table.scenario.title(), "rows": rows, "ratios": ratios})
        };
        let scenarios: Vec<_> = self.tables.iter().map(table).collect();
        let growth: Vec<_> = self.growth().iter().map(Growth::to_json).collect();
        json!({"notes": self.notes, "scenarios": scenarios, "growth": growth})
    }
}
