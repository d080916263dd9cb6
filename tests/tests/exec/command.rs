//! The command: intercepted, and otherwise as without us.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Result, ensure};
use harness::{TestBed, agent::binary, tripwire::Tripwire, wait::PATIENCE};

use super::{HOST, URL, cgroups, exec, origin, processes_beside, shell};

fn silent(bed: &TestBed) -> Result<Tripwire> {
    bed.tripwire(&[HOST])
}

#[test]
fn the_command_is_upgraded_and_nobody_beside_it() -> Result<()> {
    let bed = TestBed::new("exec-upgraded")?;
    let origin = origin(&bed)?;
    let tripwire = silent(&bed)?;
    for family in ["-4", "-6"] {
        let capture = bed.capture()?;
        let output = exec(&bed)?.args(["curl", "-q", "-sSi", family, "--max-time", "15", URL]).run()?;
        let trace = capture.stop()?;
        ensure!(output.code() == 0 && output.text().starts_with("HTTP/1.1 200 OK\r\n"), "{output:?}");
        ensure!(output.text().ends_with("\r\n\r\nfine") && output.stderr.is_empty(), "{output:?}");
        ensure!(!trace.contains(b"politics") && trace.packets_of_port(80) == 0);
    }
    let requests = origin.wait_for_requests(2)?;
    let sni = requests[0].tls.as_ref().and_then(|tls| tls.sni.as_deref());
    ensure!(sni == Some(HOST) && requests[0].target == "/politics", "{requests:?}");
    tripwire.assert_silent()?;

    // While a command runs, others go where they were going.
    let held = shell(&bed, "echo begun; read line; curl -q -sS --max-time 15 http://edition.cnn.com/")?.spawn()?;
    held.wait_for_output("begun")?;
    ensure!(bed.curl(URL)?.run()?.statuses() == [418]);
    ensure!(tripwire.touches()?.len() == 1);
    held.write_stdin(b"go\n")?;
    held.wait_for_output("fine")?;
    Ok(())
}

#[test]
fn grandchildren_are_upgraded_too() -> Result<()> {
    let bed = TestBed::new("exec-grandchildren")?;
    let _origin = origin(&bed)?;
    let tripwire = silent(&bed)?;
    let script = format!("setsid sh -c 'curl -q -sS --max-time 15 {URL}' & wait; exec curl -q -sS --max-time 15 {URL}");
    let output = shell(&bed, &script)?.run()?.success()?;
    ensure!(output.text() == "finefine", "{output:?}");
    tripwire.assert_silent()
}

#[test]
fn exit_codes_pass_through() -> Result<()> {
    let bed = TestBed::new("exec-codes")?;
    let not_executable = bed.dir().join("not-executable");
    fs::write(&not_executable, "#!/bin/sh\n")?;
    fs::set_permissions(&not_executable, fs::Permissions::from_mode(0o644))?;
    let not_executable = not_executable.display().to_string();
    let cases: [(&[&str], i32); 11] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 42"], 42),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["sh", "-c", "kill -INT $$"], 128 + 2),
        (&["no-such-command"], 127),
        (&["/no/such/command"], 127),
        (&[&not_executable], 126),
        (&["/"], 126),
    ];
    for (command, code) in cases {
        let output = exec(&bed)?.args(command).run()?;
        ensure!(output.code() == code, "{command:?}: {output:?}");
        ensure!(output.status.code() == Some(code), "{command:?}: egress itself was killed: {output:?}");
        let says = [126, 127].contains(&code);
        ensure!(output.stderr.is_empty() != says, "{command:?}: {output:?}");
        let names_it = output.stderr.starts_with("egress: ") && output.stderr.contains(command[0]);
        ensure!(!says || names_it, "{command:?}: {output:?}");
        ensure!(cgroups(&bed)?.is_empty(), "{command:?}: {:?}", cgroups(&bed)?);
    }
    Ok(())
}

#[test]
fn input_and_output_are_the_commands_own() -> Result<()> {
    let bed = TestBed::new("exec-streams")?;
    let input: Vec<u8> = (0..=255_u8).cycle().take(1_000_000).collect();
    let output = exec(&bed)?.args(["cat"]).stdin(input.clone()).run()?.success()?;
    ensure!(output.stdout == input, "{} bytes came back", output.stdout.len());
    let output = shell(&bed, "echo to stdout; echo to stderr >&2; pwd; echo $MARK; ps -o args= -p $PPID")?
        .env("MARK", "kept")
        .run()?
        .success()?;
    ensure!(output.stderr == "to stderr\n", "{output:?}");
    let (lines, here) = (output.text(), std::env::current_dir()?.display().to_string());
    let lines: Vec<_> = lines.lines().collect();
    ensure!(lines[..3] == ["to stdout", &here, "kept"] && lines[3].contains("egress exec"), "{lines:?}");
    // Options of the command are not ours, with and without the two dashes.
    let output = super::egress(&bed)?.args(["exec", "--host", HOST, "echo", "--host", "-n", "--", "x"]).run()?;
    ensure!(output.text() == "--host -n -- x\n", "{output:?}");
    Ok(())
}

#[test]
fn the_command_starts_with_nothing_of_ours() -> Result<()> {
    let bed = TestBed::new("exec-inherits")?;
    // Descriptors, blocked and ignored signals; the shell's own is the one that reads the directory.
    let script = "ls /proc/self/fd | tr '\\n' ' '; grep -E '^(SigBlk|SigIgn)' /proc/self/status";
    let without = bed.client_command("sh")?.args(["-c", script]).run()?.success()?.text();
    let with = shell(&bed, script)?.run()?.success()?.text();
    ensure!(with == without, "with us: {with}\nwithout: {without}");
    Ok(())
}

#[test]
fn the_limit_of_descriptors_is_raised_for_us_and_not_for_the_command() -> Result<()> {
    let bed = TestBed::new("exec-descriptors")?;
    let egress = binary()?.display().to_string();
    let script = "ulimit -Sn; ulimit -Hn; grep '^Max open files' /proc/$PPID/limits";
    let before =
        "ulimit -Sn 64; ulimit -Hn 4000; exec \"$0\" exec --log-level error --host edition.cnn.com -- sh -c \"$1\"";
    let output = bed.client_command("sh")?.args(["-c", before, &egress, script]).run()?.success()?;
    let text = output.text();
    let words: Vec<_> = text.split_whitespace().collect();
    ensure!(words == ["64", "4000", "Max", "open", "files", "4000", "4000", "files"], "{output:?}");
    Ok(())
}

#[test]
fn who_called_sudo_is_who_the_command_runs_as() -> Result<()> {
    let bed = TestBed::new("exec-sudo")?;
    let _origin = origin(&bed)?;
    let script = format!("id -u; id -g; id -G; curl -q -sS --max-time 15 {URL}");
    let output = shell(&bed, &script)?.env("SUDO_UID", "65534").env("SUDO_GID", "65534").run()?.success()?;
    ensure!(output.text() == "65534\n65534\n65534\nfine", "{output:?}");
    // A user whom nobody knows has the one group.
    let output = shell(&bed, "id -u; id -g; id -G")?.env("SUDO_UID", "54321").env("SUDO_GID", "54322").run()?;
    ensure!(output.text() == "54321\n54322\n54322\n", "{output:?}");
    // No way back: neither saved ids nor capabilities are left.
    let script = "grep -E '^(Uid|Gid|CapPrm|CapEff)' /proc/self/status | tr -s '\\t' ' '";
    let output = shell(&bed, script)?.env("SUDO_UID", "54321").env("SUDO_GID", "54322").run()?.success()?;
    let expected = "Uid: 54321 54321 54321 54321\nGid: 54322 54322 54322 54322\nCapPrm: 0000000000000000\nCapEff: 0000000000000000\n";
    ensure!(output.text() == expected, "{output:?}");
    // Without sudo, or by root's own, it stays root.
    for environment in [vec![], vec![("SUDO_UID", "0"), ("SUDO_GID", "0")]] {
        let command = environment.iter().fold(shell(&bed, "id -u")?, |command, (name, value)| command.env(name, value));
        ensure!(command.run()?.text() == "0\n", "{environment:?}");
    }
    Ok(())
}

#[test]
fn what_fails_before_the_command_begins_is_our_failure() -> Result<()> {
    let bed = TestBed::new("exec-ours")?;
    let egress = binary()?.display().to_string();
    // Whoever may not change groups cannot become somebody else.
    let output = bed
        .client_command("setpriv")?
        .args(["--bounding-set", "-setgid", &egress, "exec", "--log-level", "error", "--host", HOST, "--", "true"])
        .env("SUDO_UID", "65534")
        .env("SUDO_GID", "65534")
        .run()?;
    ensure!(output.code() == 125, "{output:?}");
    let expected = "egress: cannot run the command as the user who called sudo: Operation not permitted (os error 1)\n";
    ensure!(output.stderr == expected && cgroups(&bed)?.is_empty(), "{output:?}");
    Ok(())
}

#[test]
fn two_at_the_same_time_do_not_meet() -> Result<()> {
    let bed = TestBed::builder("exec-two").host(HOST).host("other.example").build()?;
    let tls = harness::origin::ServerTls::new(bed.pki().server(&[HOST, "other.example"])?);
    let _origin = bed
        .embedded_origin()
        .handler(|request| harness::origin::Reply::ok(format!("{}\n", request.host)))
        .tls(&bed.sockets(HOST, 443), &tls)?
        .tls(&bed.sockets("other.example", 443), &tls)?
        .start()?;
    let tripwire = bed.tripwire(&[HOST, "other.example"])?;
    let script = |host: &str| format!("echo begun; read line; curl -q -sS --max-time 15 http://{host}/");
    let start =
        |host: &str| super::egress(&bed)?.args(["exec", "--host", host, "--", "sh", "-c", &script(host)]).spawn();
    let (mut one, mut two) = (start(HOST)?, start("other.example")?);
    one.wait_for_output("begun")?;
    two.wait_for_output("begun")?;
    ensure!(cgroups(&bed)?.len() == 2, "{:?}", cgroups(&bed)?);
    for (running, host) in [(&mut one, HOST), (&mut two, "other.example")] {
        running.write_stdin(b"go\n")?;
        running.wait_for_output(&format!("{host}\n"))?;
        // The other one is still there, and still intercepted, when this one has gone.
        ensure!(running.wait(PATIENCE)?.success(), "{:?}", running.stderr());
    }
    ensure!(cgroups(&bed)?.is_empty() && processes_beside(&bed)? == 1);
    tripwire.assert_silent()
}
