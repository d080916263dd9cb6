//! Benchmarks run, and what they count rather than time is as it should be.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::process::Command;
use serde_json::Value;

/// What a pod may take, in bytes.
const MEMORY_TARGET: f64 = 100e3;

#[test]
fn a_pod_costs_three_descriptors_and_little_memory() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("figures.json");
    let bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    bench.args(["namespaces", "--count", "30", "--json"]).arg(&json).run()?.success()?;

    let figures = serde_json::from_str::<Value>(&fs::read_to_string(json)?)?;
    let number = |name: &str| figures[name].as_f64().with_context(|| format!("{name}: {figures:#}"));
    // A connection to the admin port may still be closing.
    ensure!(number("descriptors_each")?.round() == 3.0, "{figures:#}");
    // Where no cgroup accounts for memory, nobody can say what the kernel's is.
    let kernel = figures["kernel_bytes_each"].as_f64().unwrap_or(0.0);
    ensure!(number("agent_bytes_each")? + kernel < MEMORY_TARGET, "{figures:#}");
    for time in ["serving_seconds", "start_seconds", "release_seconds"] {
        ensure!(number(time)? > 0.0, "{figures:#}");
    }
    Ok(())
}

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
        // One looks at each packet that arrives, for DNS answers; in data of TCP it finds none at once.
        for program in list(&used["programs"])?.iter().filter(|program| program["program"] != "learn_names") {
            ensure!(program["runs"] == 0, "a program runs for each packet or request: {used:#}");
        }
    }
    Ok(())
}
