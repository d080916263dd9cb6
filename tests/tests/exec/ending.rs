//! How it ends: by signals, by the command's own end, and by ours.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::binary,
    dns::{Answer, DnsServer},
    process::Running,
    wait::{PATIENCE, wait_for, wait_until},
};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};

use super::{HOST, URL, cgroups, egress, exec, origin, processes, processes_beside, shell};

/// Whether a process can still do anything: one that is dead may have to wait for whoever inherits it.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Waits until a script has said that it is ready for signals.
fn ready(running: &Running) -> Result<()> {
    running.wait_for_output("ready\n")
}

fn nothing_is_left(bed: &TestBed) -> Result<()> {
    wait_until("the cgroup to be removed", PATIENCE, || cgroups(bed).is_ok_and(|cgroups| cgroups.is_empty()))
        .with_context(|| format!("{:?} with {:?}", cgroups(bed), processes(bed)))?;
    wait_until("our own processes to end", PATIENCE, || processes_beside(bed).is_ok_and(|count| count == 1))
}

#[test]
fn signals_reach_the_command_which_decides_what_to_do() -> Result<()> {
    let bed = TestBed::new("exec-signals")?;
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGHUP, Signal::SIGQUIT] {
        let name = signal.as_str().trim_start_matches("SIG");
        let script = format!("trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.05; done");
        let mut running = shell(&bed, &script)?.spawn()?;
        ready(&running)?;
        running.signal(signal)?;
        running.wait_for_output(&format!("got {name}\n"))?;
        let status = running.wait(PATIENCE)?;
        ensure!(status.code() == Some(5), "{name}: {status}: {:?}", running.stderr());
        nothing_is_left(&bed)?;
    }
    Ok(())
}

#[test]
fn a_signal_that_the_command_does_not_handle_ends_it() -> Result<()> {
    let bed = TestBed::new("exec-unhandled")?;
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130), (Signal::SIGHUP, 129)] {
        let mut running = shell(&bed, "echo ready; exec sleep 600")?.spawn()?;
        ready(&running)?;
        let sleeps = || {
            processes(&bed)
                .ok()?
                .first()
                .copied()
                .filter(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n"))
        };
        wait_for("sleep to run", PATIENCE, sleeps)?;
        running.signal(signal)?;
        ensure!(running.wait(PATIENCE)?.code() == Some(code), "{signal}");
        nothing_is_left(&bed)?;
    }
    Ok(())
}

/// As where a mount hangs. Here it is a pipe into which nobody writes.
#[test]
fn a_signal_while_the_rules_are_read_ends_it() -> Result<()> {
    let bed = TestBed::new("exec-unread")?;
    let config = bed.config_dir()?;
    let pipe = config.path().join("slow.yaml");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let mut running = egress(&bed)?.args(["exec", "--config"]).arg(config.path()).args(["--", "true"]).spawn()?;
    running.wait_for_line("what it waits for", |line| line.contains(&pipe.display().to_string()))?;
    running.signal(Signal::SIGTERM)?;
    ensure!(running.wait(PATIENCE)?.code() == Some(143), "{:?}", running.stderr());
    nothing_is_left(&bed)
}

#[test]
fn a_signal_while_names_are_looked_up_ends_it_unless_it_is_ignored() -> Result<()> {
    let bed = TestBed::builder("exec-early").host("dns.example").unlisted_host(HOST);
    let bed = bed.resolv_conf("nameserver 198.51.100.1\noptions timeout:1 attempts:20\n").build()?;
    let (asked, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (told, may) = (Arc::clone(&asked), Arc::clone(&answers));
    let _dns = DnsServer::start(bed.origin(), bed.addresses("dns.example").v4.into(), move |_| {
        told.store(true, Ordering::Relaxed);
        may.load(Ordering::Relaxed).then(|| Answer::addresses([[192, 0, 2, 1].into()]))
    })?;
    let egress = binary()?.display().to_string();
    let start = || -> Result<Running> {
        asked.store(false, Ordering::Relaxed);
        let script = "trap '' HUP; exec \"$0\" exec --log-level error --host edition.cnn.com -- echo ran";
        let running = bed.client_command("sh")?.args(["-c", script, &egress]).spawn()?;
        wait_until("the name to be asked for", PATIENCE, || asked.load(Ordering::Relaxed))?;
        Ok(running)
    };
    let mut running = start()?;
    running.signal(Signal::SIGTERM)?;
    ensure!(running.wait(PATIENCE)?.code() == Some(143), "{:?}", running.stderr());
    ensure!(running.stderr() == ["egress: SIGTERM came before the command was started"], "{:?}", running.stderr());
    let mut running = start()?;
    running.signal(Signal::SIGWINCH)?;
    running.signal(Signal::SIGHUP)?;
    answers.store(true, Ordering::Relaxed);
    ensure!(running.wait(PATIENCE)?.success(), "{:?}", running.stderr());
    nothing_is_left(&bed)
}

#[test]
fn when_we_are_killed_the_command_and_all_its_children_die_in_silence() -> Result<()> {
    let bed = TestBed::new("exec-killed")?;
    let _origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[HOST])?;
    // They ask again and again, so that one that outlives us would touch the tripwire.
    let forever = format!("while :; do curl -q -sS --max-time 15 {URL}; done");
    let script = format!("trap '' TERM HUP INT; setsid sh -c '{forever}' & {forever}");
    let mut running = shell(&bed, &script)?.spawn()?;
    running.wait_for_output("finefinefinefine")?;
    let pids = wait_for("the command to run", PATIENCE, || processes(&bed).ok().filter(|pids| pids.len() >= 2))?;
    running.signal(Signal::SIGKILL)?;
    running.wait(PATIENCE)?;
    wait_until("the command to die", PATIENCE, || pids.iter().all(|pid| !is_alive(*pid)))
        .with_context(|| format!("{pids:?}"))?;
    nothing_is_left(&bed)?;
    tripwire.assert_silent()
}

#[test]
fn what_the_command_leaves_running_ends_with_it() -> Result<()> {
    let bed = TestBed::new("exec-left")?;
    let script = "trap '' TERM HUP; setsid sleep 600 >/dev/null 2>&1 & (sleep 600 >/dev/null 2>&1 &) ; echo $!; exit 3";
    let output = shell(&bed, script)?.run()?;
    ensure!(output.code() == 3, "{output:?}");
    let pid: u32 = output.text().trim().parse().context("no pid")?;
    ensure!(!is_alive(pid), "{pid} goes on");
    // Nothing is left when egress has ended: there is nothing to wait for.
    ensure!(cgroups(&bed)?.is_empty(), "{:?}", cgroups(&bed)?);
    ensure!(processes_beside(&bed)? == 1);
    Ok(())
}

#[test]
fn the_end_of_the_command_does_not_cut_its_last_answer_short() -> Result<()> {
    let bed = TestBed::new("exec-last")?;
    let tls = harness::origin::ServerTls::new(bed.pki().server(&[HOST])?);
    let _origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    for _ in 0..5 {
        let url = format!("http://{HOST}/bytes/3000000");
        let output = exec(&bed)?.args(["curl", "-q", "-sS", "--max-time", "15", &url]).run()?.success()?;
        ensure!(output.stdout.len() == 3_000_000, "{} bytes", output.stdout.len());
    }
    Ok(())
}
