//! Benchmarks run, and what they count rather than time is as it should be.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
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

#[test]
fn rules_cost_the_same_however_many_there_are() -> Result<()> {
    /// What a host may take, in bytes. Of so few hosts much is what the agent takes anyway, and some what a reload leaves.
    const LIMIT: f64 = 32.0 * 1024.0;
    let dir = tempfile::tempdir()?;
    let json = dir.path().join("figures.json");
    let bench = Command::new(env!("CARGO_BIN_EXE_bench")).args(["policy", "--hosts", "10", "--hosts", "2000"]);
    let bench = bench.args(["--rate", "50", "--seconds", "1", "--reloads", "2"]).arg("--json").arg(&json);
    let output = bench.patience(Duration::from_secs(120)).run()?.success()?;
    for part in ["\nreload, one host changed, s ", "\nconnect hook, ns ", "\n  during reloads "] {
        ensure!(output.text().contains(part), "{part:?} is missing: {output:?}");
    }

    let figures = serde_json::from_str::<Value>(&fs::read_to_string(json)?)?;
    let [few, many] = figures["policies"].as_array().context("policies")?.as_slice() else { bail!("{figures:#}") };
    for policy in [few, many] {
        for measure in
            ["start_seconds", "reload_seconds", "reload_cpu_seconds", "connect_ns", "reloads_during_requests"]
        {
            ensure!(policy[measure].as_f64().is_some_and(|value| value > 0.0), "{measure}: {policy:#}");
        }
        for requests in ["requests", "requests_during_reloads"] {
            ensure!(policy[requests]["max_us"].as_f64().is_some_and(|value| value > 0.0), "{requests}: {policy:#}");
        }
    }
    ensure!(few["hosts"] == 10 && many["hosts"] == 2000, "{figures:#}");
    ensure!(many["agent_bytes_each"].as_f64().is_some_and(|bytes| bytes < LIMIT), "{figures:#}");
    Ok(())
}

#[test]
fn the_proxy_is_compared_with_another() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (json, svg) = (dir.path().join("figures.json"), dir.path().join("chart.svg"));
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench")).args(["proxy", "--quick", "--rounds", "1"]);
    for peer in ["egress-http1", "egress-http2", "nginx", "direct-https"] {
        bench = bench.args(["--peer", peer]);
    }
    // One of each kind.
    let kinds =
        ["keepalive", "keepalive-1000", "connect", "100k", "100m", "handshake", "rate", "relay", "idle", "startup"];
    for scenario in kinds.into_iter().chain(["startup-first", "seed", "namespaces"]) {
        bench = bench.args(["--scenario", scenario]);
    }
    let bench = bench.arg("--json").arg(&json).arg("--svg").arg(&svg).patience(Duration::from_secs(120));
    let output = bench.run()?.success()?;
    for part in [
        "to the origin, resumes TLS sessions\negress, HTTP/2: ",
        "speaks HTTP/2.0 to the origin\nnginx: ",
        "\n1 KB on 64 kept connections (1 rounds)\n",
        "egress, HTTP/1.1 : nginx ",
    ] {
        ensure!(output.text().contains(part), "{part:?} is missing: {output:?}");
    }

    let figures = serde_json::from_str::<Value>(&fs::read_to_string(json)?)?;
    let rows = |scenario: &str| {
        let tables = figures["scenarios"].as_array().context("scenarios")?;
        let table = tables.iter().find(|table| table["scenario"] == scenario).with_context(|| scenario.to_owned())?;
        table["rows"].as_array().cloned().context("rows")
    };
    let names = |scenario: &str| -> Result<Vec<String>> {
        Ok(rows(scenario)?.iter().map(|row| row["name"].as_str().unwrap_or_default().to_owned()).collect())
    };
    let check = |scenario: &str, name: &str, measures: &[&str]| {
        let rows = rows(scenario)?;
        let row = rows.iter().find(|row| row["name"] == name).with_context(|| format!("{scenario}: {name}"))?;
        for measure in measures {
            let value = row["medians"][measure].as_f64().with_context(|| format!("{scenario}: {measure}: {row:#}"))?;
            ensure!(value > 0.0, "{scenario}: {measure}: {row:#}");
        }
        anyhow::Ok(())
    };
    const OF_LOAD: &[&str] = &["cpu_us", "p50_us", "p99_us", "p999_us", "requests_per_second"];
    for name in ["egress, HTTP/1.1", "egress, HTTP/2", "nginx"] {
        for scenario in ["keepalive", "keepalive-1000", "connect", "100k", "rate"] {
            check(scenario, name, OF_LOAD)?;
        }
        check("100m", name, &["cpu_ms_per_100_mb", "megabytes_per_second"])?;
        check("idle", name, &["idle_resident_mib", "resident_mib"])?;
        check("startup", name, &["milliseconds"])?;
    }
    for name in ["egress, HTTP/1.1", "nginx"] {
        check("handshake", name, OF_LOAD)?;
    }
    for name in ["1 pod", "250 pods"] {
        check("namespaces", name, OF_LOAD)?;
    }
    check("startup-first", "egress, HTTP/2", &["milliseconds"])?;
    check("relay", "egress, HTTP/1.1", &["cpu_us", "p50_us", "requests_per_second"])?;
    check("keepalive", "direct HTTPS", &["p50_us", "requests_per_second"])?;
    let growth = figures["growth"].as_array().context("growth")?;
    ensure!(!growth.is_empty() && growth.iter().all(|row| row["ratio"].as_f64().is_some()), "{growth:#?}");
    // There the handshakes would be the client's.
    ensure!(names("handshake")? == ["egress, HTTP/1.1", "nginx"], "{figures:#}");
    // Each round trip takes 40 ms: a warm upstream connection needs one, a cold one three, the redirect two more.
    let seed = rows("seed")?;
    let took = seed.iter().filter_map(|row| row["medians"]["milliseconds"].as_f64()).collect::<Vec<_>>();
    let [redirected, direct, cold, warm, cold_http2, warm_http2, preconnected] = took[..] else { bail!("{figures:#}") };
    ensure!(redirected >= 200.0 && direct >= 120.0 && cold >= 120.0 && warm >= 40.0, "{figures:#}");
    ensure!(cold_http2 >= 120.0 && warm_http2 >= 40.0 && warm_http2 < direct, "{figures:#}");
    ensure!(preconnected >= 40.0 && preconnected < direct, "{figures:#}");
    ensure!(warm < direct && direct < redirected, "{figures:#}");

    let chart = fs::read_to_string(svg)?;
    ensure!(chart.starts_with("<svg ") && chart.contains(">egress, HTTP/1.1</text>"), "{chart}");
    Ok(())
}
