//! The figures as a picture: bars for each scenario, the CPU time that each way takes.

use std::fmt::Write as _;

use super::{
    figures::{Figures, Measure, Row, Table},
    peer::Peer,
};

/// In pixels.
const WIDTH: f64 = 780.0;
const COLUMNS: usize = 2;
const BAR: f64 = 16.0;
const GAP: f64 = 5.0;
const LABEL: f64 = 118.0;
const VALUE: f64 = 64.0;
const TITLE: f64 = 30.0;
const MARGIN: f64 = 16.0;

/// One picture of all scenarios that compare peers.
pub(super) fn svg(figures: &Figures) -> String {
    let panels: Vec<Panel<'_>> = figures.tables.iter().filter_map(Panel::of).collect();
    let (mut body, mut top) = (String::new(), MARGIN);
    for line in panels.chunks(COLUMNS) {
        for (column, panel) in line.iter().enumerate() {
            panel.draw(&mut body, column as f64 * WIDTH / COLUMNS as f64, top);
        }
        top += line.iter().map(Panel::height).fold(0.0, f64::max) + MARGIN;
    }
    // Pages are light or dark, and the picture has no ground of its own.
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{top}\" viewBox=\"0 0 {WIDTH} {top}\" \
         role=\"img\" aria-label=\"What egress and its peers take for each request\">\n<style>\n\
         text {{ font: 12px system-ui, sans-serif; fill: #24292f; }}\n.title {{ font-weight: 600; font-size: 13px; }}\n\
         .egress {{ fill: #1a7f64; }}\n.peer {{ fill: #8c959f; }}\n\
         @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3; }} .egress {{ fill: #3fb68b; }} .peer {{ fill: #6e7681; }} }}\n\
         </style>\n{body}</svg>\n"
    )
}

/// A scenario's bars.
struct Panel<'a> {
    title: String,
    unit: &'static str,
    measure: Measure,
    rows: Vec<(&'a Row, f64)>,
}

impl<'a> Panel<'a> {
    fn of(table: &'a Table) -> Option<Self> {
        if !table.scenario.compares_peers() {
            return None;
        }
        let kinds = [
            (Measure::Cpu, "µs", "CPU per request"),
            (Measure::CpuPer100Mb, "ms", "CPU per 100 MB"),
            (Measure::ResidentLoaded, "MiB", "resident memory"),
            (Measure::Time, "ms", "to the first response"),
        ];
        let measures = table.measures();
        let (measure, unit, what) = kinds.into_iter().find(|(measure, ..)| measures.contains(measure))?;
        let rows = table.rows.iter().filter_map(|row| Some((row, row.median(measure)?))).collect();
        Some(Self { title: format!("{}: {what}", table.scenario.short_title()), unit, measure, rows })
    }

    fn height(&self) -> f64 {
        TITLE + self.rows.len() as f64 * (BAR + GAP)
    }

    fn draw(&self, svg: &mut String, left: f64, top: f64) {
        let longest = self.rows.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
        let room = WIDTH / COLUMNS as f64 - LABEL - VALUE - MARGIN;
        text(svg, "title", left + MARGIN, top + BAR, "start", &self.title);
        for (index, (row, value)) in self.rows.iter().enumerate() {
            let y = top + TITLE + index as f64 * (BAR + GAP);
            let is_egress = Peer::ALL.into_iter().any(|peer| peer.is_egress() && peer.label() == row.label);
            let class = if is_egress { "egress" } else { "peer" };
            let (x, width, baseline) = (left + LABEL + MARGIN, room * value / longest, y + BAR - 4.0);
            text(svg, "", x - 6.0, baseline, "end", row.label);
            let title = format!("{}: {value:.1} {} ({})", row.label, self.unit, self.measure.label());
            line(
                svg,
                format_args!(
                    "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"2\">\
                 <title>{title}</title></rect>"
                ),
            );
            let precision = usize::from(*value < 100.0);
            text(svg, "", x + width + 6.0, baseline, "start", &format!("{value:.precision$} {}", self.unit));
        }
    }
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
    // Labels are this program's own, and have nothing to escape.
    line(svg, format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"));
}

fn line(svg: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(svg, "{element}").expect("writing to a string does not fail");
}
