//! `egress check`: what it prints and how it exits, without root's powers and without a kernel that helps.

mod probe;

use std::fs;

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::binary,
    process::{Command, Output},
    wait::PATIENCE,
};
use nix::{sys::stat::Mode, unistd::mkfifo};

/// The example of Istio's page, which is the README's as well.
const SEED: &str = include_str!("../../../egress-userspace/src/config/tests/seed-origination.yaml");

/// Nobody, as far as the kernel is concerned.
const NOBODY: u32 = 65534;

fn check(bed: &TestBed, text: &str, arguments: &[&str]) -> Result<Output> {
    let file = bed.dir().join("rules.yaml");
    fs::write(&file, text)?;
    Command::new(binary()?).arg("check").args(arguments).arg(&file).uid(NOBODY).run()
}

#[test]
fn the_exit_code_says_whether_rules_can_be_used() -> Result<()> {
    let bed = TestBed::new("check-codes")?;
    let warned = SEED.replace("mode: SIMPLE", "mode: SIMPLE\n          sni: www.cnn.com");
    let broken = SEED.replace("mode: SIMPLE", "mode: SIMPEL");
    for (text, arguments, code, expected) in [
        (
            SEED,
            [].as_slice(),
            0,
            "http://edition.cnn.com:80 -> TLS 1.2+ edition.cnn.com:443, OS roots, SNI edition.cnn.com",
        ),
        (SEED, &["--strict"], 0, "1 rule, 0 errors, 0 warnings"),
        (&warned, &[], 0, "warning [EG0207 sni-without-subject-alt-names]"),
        (&warned, &["--strict"], 1, "1 rule, 0 errors, 1 warning"),
        (&broken, &[], 1, "did you mean SIMPLE?"),
        (&broken, &["--strict", "--output", "json"], 1, "\"EG0008\""),
        ("", &[], 0, "nothing would be intercepted\n0 rules, 0 errors, 0 warnings"),
    ] {
        let output = check(&bed, text, arguments)?;
        ensure!(output.code() == code && output.text().contains(expected), "{arguments:?}: {output:?}");
        ensure!(output.stderr.is_empty(), "{output:?}");
    }
    let empty = bed.dir().join("empty");
    fs::create_dir(&empty)?;
    fs::write(empty.join("rules.txt"), SEED)?;
    let output = Command::new(binary()?).arg("check").arg(&empty).run()?;
    ensure!(output.code() == 1 && output.text().contains("ends in .yaml, .yml or .json"), "{output:?}");
    let usage = Command::new(binary()?).arg("check").run()?;
    ensure!(usage.code() == 64 && usage.stderr.contains("<PATH>"), "{usage:?}");
    Ok(())
}

#[test]
fn a_file_that_is_named_twice_is_read_once() -> Result<()> {
    let bed = TestBed::new("check-twice")?;
    let (file, directory) = (bed.dir().join("rules.yaml"), bed.dir());
    fs::write(&file, SEED)?;
    let output = Command::new(binary()?).arg("check").args(["--strict"]).args([directory, &file, &file]).run()?;
    ensure!(output.code() == 0 && output.text().contains("1 rule, 0 errors, 0 warnings"), "{output:?}");
    Ok(())
}

#[test]
fn what_has_no_end_is_not_read_to_it() -> Result<()> {
    let piped = Command::new(binary()?).args(["check", "/dev/stdin"]).stdin(SEED).run()?;
    ensure!(piped.code() == 0 && piped.text().contains("1 rule"), "{piped:?}");
    let endless = Command::new(binary()?).args(["check", "/dev/zero"]).run()?;
    ensure!(endless.code() == 1 && endless.text().contains("it is larger than 256 MiB"), "{endless:?}");
    Ok(())
}

/// Here it is a pipe, into which nobody writes for a while.
#[test]
fn a_file_that_takes_long_to_read_is_named() -> Result<()> {
    let bed = TestBed::new("check-pipe")?;
    let (file, authority) = (bed.dir().join("rules.yaml"), bed.dir().join("ca.pem"));
    let with_authority = format!("mode: SIMPLE\n          caCertificates: {}", authority.display());
    fs::write(&file, SEED.replace("mode: SIMPLE", &with_authority))?;
    fs::copy(bed.pki().ca_file(), &authority)?;
    for pipe in [&file, &authority] {
        let content = fs::read(pipe)?;
        fs::remove_file(pipe)?;
        mkfifo(pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let mut checking = Command::new(binary()?).arg("check").arg(&file).spawn()?;
        let named = format!("egress: {} takes long to read", pipe.display());
        checking.wait_for_line("what it waits for", |line| line.starts_with(&named))?;
        fs::write(pipe, &content)?;
        ensure!(checking.wait(PATIENCE)?.success(), "{checking:?}");
        ensure!(checking.stdout().contains("1 rule, 0 errors, 0 warnings"), "{checking:?}");
        fs::remove_file(pipe)?;
        fs::write(pipe, &content)?;
    }
    Ok(())
}

#[test]
fn the_exit_code_is_true_where_nobody_can_read_why() -> Result<()> {
    let bed = TestBed::new("check-full")?;
    let missing = bed.dir().join("missing");
    for (arguments, code) in [("run --config", 64), ("check", 1), ("run --log-level warning --config", 64)] {
        let command = format!("{} {arguments} {} >/dev/full 2>&1", binary()?.display(), missing.display());
        let output = Command::new("sh").args(["-c", &command]).run()?;
        ensure!(output.code() == code, "{arguments}: {output:?}");
    }
    Ok(())
}

#[test]
fn what_can_be_found_is_listed_by_code() -> Result<()> {
    let output = Command::new(binary()?).args(["check", "--list-codes"]).run()?.success()?;
    let lines: Vec<_> = output.text().lines().map(str::to_owned).collect();
    ensure!(lines.is_sorted() && lines.len() > 40, "{output:?}");
    let of = |code: &str| lines.iter().find(|line| line.starts_with(code)).cloned().unwrap_or_default();
    for (code, name, meaning) in [
        ("EG0105 error ", " clear-text ", "Requests of a host with TLS origination would leave in clear."),
        ("EG0251 warning ", " expires-soon ", "A certificate of an origin that was probed ends within weeks."),
    ] {
        ensure!(of(code).contains(name) && of(code).ends_with(meaning), "{code}: {output:?}");
    }
    Ok(())
}

#[test]
fn json_can_be_read_by_machines() -> Result<()> {
    let bed = TestBed::new("check-json")?;
    let output =
        check(&bed, &SEED.replace("number: 80\n        tls", "number: 81\n        tls"), &["--output", "json"])?;
    ensure!(output.code() == 0, "{output:?}");
    let report: serde_json::Value = serde_json::from_str(&output.text())?;
    ensure!(report["rules"].as_array().is_some_and(Vec::is_empty), "{report}");
    ensure!(report["errors"] == 0 && report["warnings"] == 2, "{report}");
    let finding = &report["diagnostics"][0];
    ensure!(finding["code"] == "EG0202" && finding["name"] == "not-originated", "{finding}");
    ensure!(finding["severity"] == "warning" && finding["path"] == "spec.ports[0].targetPort", "{finding}");
    ensure!(finding["location"]["file"] == bed.dir().join("rules.yaml").display().to_string(), "{finding}");
    ensure!(finding["location"]["line"] == 12, "{finding}");
    ensure!(
        finding["reason"].is_string() && finding["remedy"].as_str().is_some_and(|text| text.contains("81")),
        "{finding}"
    );
    Ok(())
}
