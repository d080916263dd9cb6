//! Benchmarks run, and what they count rather than time is as it should be.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::process::Command;
use serde_json::Value;

#[test]
fn interception_costs_nothing_once_connected() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("figures.json");
    let bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    let output = bench.args(["intercept", "--quick", "--json"]).arg(&json).run()?.success()?;
    for part in ["\nconnect(2)\n", "redirected by egress ", "redirected by iptables ", "  connect6 "] {
        ensure!(output.text().contains(part), "{part:?} is missing: {output:?}");
    }

    let figures = serde_json::from_str::<Value>(&fs::read_to_string(json)?)?;
    let list = |value: &Value| value.as_array().cloned().context("a list");
    let number = |value: &Value| value.as_f64().context("a number");
    ensure!(list(&figures["costs"])?.len() == 4 * 6, "{figures:#}");
    for cost in list(&figures["costs"])? {
        ensure!(number(&cost["cpu_us_median"])? > 0.0 && number(&cost["per_second"])? > 0.0, "{cost}");
    }
    let runs = |programs: &Value, name: &str| {
        let named = list(programs)?.into_iter().filter(|program| program["program"] == name);
        named.map(|program| number(&program["runs"])).sum::<Result<f64>>()
    };
    for hooks in list(&figures["hooks"])? {
        let programs = &hooks["programs"];
        let connects = runs(programs, "connect4")? + runs(programs, "connect6")?;
        ensure!(connects == number(&hooks["connects"])?, "{hooks:#}");
    }
    for used in list(&figures["established"])? {
        for program in list(&used["programs"])? {
            ensure!(program["runs"] == 0, "a program runs for each packet or request: {used:#}");
        }
    }
    Ok(())
}
