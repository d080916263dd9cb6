//! What is said when it cannot begin, and when it is asked.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use harness::{TestBed, agent::binary, process::Command};

use super::{HOST, URL, cgroups, egress, origin};

#[test]
fn a_host_that_has_no_address_is_an_error_before_the_command_starts() -> Result<()> {
    let bed = TestBed::new("exec-unresolved")?;
    let marker = bed.dir().join("started");
    let hosts = ["--host", HOST, "--host", "no-such-host.example"];
    let command = ["touch", &marker.display().to_string()].map(ToOwned::to_owned);
    let output = egress(&bed)?.arg("exec").args(hosts).arg("--").args(command).run()?;
    ensure!(output.code() == 125, "{output:?}");
    let reason = output.stderr.lines().find(|line| line.starts_with("egress: ")).unwrap_or_default();
    ensure!(reason.starts_with("egress: cannot resolve no-such-host.example: "), "{output:?}");
    ensure!(reason.contains("the command was not started"), "{output:?}");
    ensure!(!marker.exists() && cgroups(&bed)?.is_empty());
    ensure!(output.elapsed < Duration::from_secs(10), "it took {:?}", output.elapsed);
    Ok(())
}

#[test]
fn bad_usage_is_64_and_says_what_is_wrong() -> Result<()> {
    let bed = TestBed::new("exec-usage")?;
    let missing = bed.dir().join("missing.yaml").display().to_string();
    let bad = bed.dir().join("bad.yaml").display().to_string();
    fs::write(
        &bad,
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  host: [a.example]\n",
    )?;
    let cases: [(&[&str], &str); 14] = [
        (&["exec", "--", "true"], "--host <HOST>"),
        (&["exec", "--host", HOST], "<COMMAND>"),
        (&["exec", "--host", HOST, "--"], "<COMMAND>"),
        (&["exec", "--host", "http://edition.cnn.com/x", "--", "true"], "drop the scheme"),
        (&["exec", "--host", "edition.cnn.com:80", "--", "true"], "contains a port"),
        (&["exec", "--host", "", "--", "true"], "the host name is empty"),
        (&["exec", "--no-such-option", "--", "true"], "--no-such-option"),
        (&["exec", "--config", &missing, "--", "true"], &missing),
        (&["exec", "--config", &bad, "--", "true"], "bad.yaml:5: "),
        (&["exec", "--host", HOST, "--log-level", "egress=loud", "--", "true"], "--log-level egress=loud"),
        (&["exec", "--host", HOST, "--max-head-fields", "65537", "--", "true"], "it must be at most 65536"),
        // Where nothing is logged there is nothing to set.
        (&["check", "--log-level", "info", &bad], "--log-level"),
        (&["detach", "--log-ebpf"], "--log-ebpf"),
        (&[], "Usage: egress"),
    ];
    for (arguments, expected) in cases {
        let output = egress(&bed)?.args(arguments).run()?;
        ensure!(output.code() == 64, "{arguments:?}: {output:?}");
        ensure!(output.stderr.contains(expected) && output.stdout.is_empty(), "{arguments:?}: {output:?}");
        ensure!(cgroups(&bed)?.is_empty());
    }
    Ok(())
}

#[test]
fn a_bad_configuration_is_64_for_those_who_may_not_run_it_too() -> Result<()> {
    const NOBODY: u32 = 65534;
    let bed = TestBed::new("exec-nobody")?;
    let program = bed.dir().join("egress");
    // By a process of its own: what this one has open for writing, those have for a moment that other tests start.
    Command::new("cp").arg(binary()?).arg(&program).run()?.success()?;
    let missing = bed.dir().join("missing.yaml").display().to_string();
    let rest: [&[&str]; 2] = [&["exec", "--config", &missing, "--", "true"], &["run", "--config", &missing]];
    for arguments in rest {
        let output = bed.client_command(&program)?.args(arguments).uid(NOBODY).run()?;
        ensure!(output.code() == 64 && output.stderr.contains(&missing), "{arguments:?}: {output:?}");
    }
    let output = bed.client_command(&program)?.args(["exec", "--host", HOST, "--", "true"]).uid(NOBODY).run()?;
    ensure!(output.code() == 125, "{output:?}");
    Ok(())
}

#[test]
fn rules_come_from_a_file_as_well() -> Result<()> {
    let bed = TestBed::new("exec-config")?;
    let _origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let rules = bed.dir().join("rules.yaml");
    fs::write(&rules, include_str!("../../seed/tls-origination.yaml"))?;
    let command = egress(&bed)?.args(["exec", "--config"]).arg(&rules);
    let output = command.args(["--", "curl", "-q", "-sS", "--max-time", "15", URL]).run()?.success()?;
    ensure!(output.text() == "fine", "{output:?}");
    tripwire.assert_silent()
}

#[test]
fn the_log_is_quiet_unless_asked() -> Result<()> {
    let bed = TestBed::new("exec-log")?;
    let _origin = origin(&bed)?;
    let command = egress(&bed)?.args(["exec", "--host", HOST, "--log", "json", "--log-level", "info", "--"]);
    let output = command.args(["curl", "-q", "-sS", "--max-time", "15", URL]).run()?.success()?;
    let record = output.stderr.lines().find(|line| line.contains("egress::access")).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_str(record)?;
    ensure!(record["process"] == "curl" && record["status"] == 200 && record["outcome"] == "upgraded", "{record}");
    ensure!(output.text() == "fine");
    Ok(())
}

#[test]
fn help_and_version_tell_what_there_is() -> Result<()> {
    let run = |arguments: &[&str]| Command::new(binary()?).args(arguments).run()?.success();
    let version = run(&["--version"])?.text();
    ensure!(version == format!("egress {}\n", env!("CARGO_PKG_VERSION")), "{version}");
    for (arguments, expected) in [
        (vec!["--help"], vec!["run", "exec", "check", "detach"]),
        (
            vec!["run", "--help"],
            vec!["--log", "--log-level", "--config", "--host", "--cgroup", "--admin", "--drain-timeout", "--workers"],
        ),
        (vec!["exec", "--help"], vec!["--config", "--host", "COMMAND"]),
    ] {
        let output = run(&arguments)?;
        for option in expected {
            ensure!(output.text().contains(option), "{arguments:?} does not mention {option}: {}", output.text());
        }
        ensure!(output.stderr.is_empty(), "{output:?}");
    }
    Ok(())
}
