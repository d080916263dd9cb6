//! How an agent that has handed over comes to its end.

use std::{fs, sync::Mutex, thread, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::Agent,
    origin::Reply,
    process::Running,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{
    CLIENT, HOST, URL, address, begin, options, origin, origin_with,
    peer::{NO_MAPS, ask, connect, hear, say},
};

#[test]
fn what_is_under_way_is_finished_by_the_old_agent() -> Result<()> {
    let bed = TestBed::new("under-way")?;
    let (response, socket) = (unbounded_channel(), unbounded_channel());
    let (parts, pieces) =
        ([response.0, socket.0], Mutex::new([("/slow", Some(response.1)), ("/socket", Some(socket.1))]));
    let _origin = origin_with(&bed, move |target| {
        let mut pieces = pieces.lock().expect("no test panics with it");
        let found = pieces.iter_mut().find(|(path, _)| *path == target).and_then(|(_, pieces)| pieces.take());
        found.map_or_else(|| Reply::ok("over TLS\n"), Reply::Stream)
    })?;
    let options = options(&bed)?;
    let mut old = Agent::start(&bed, &options)?;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let mut slow = begin(&bed, &format!("GET /slow HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))?;
    let mut tunnel = begin(&bed, &format!("GET /socket HTTP/1.1\r\nHost: {HOST}\r\n{upgrade}\r\n"))?;
    let idle = bed.client_command(CLIENT)?.args(["hold", &address(&bed), "--count", "3"]).spawn()?;
    let say = |sender: &UnboundedSender<Vec<u8>>, text: &str| sender.send(text.as_bytes().to_vec());
    say(&parts[0], "HTTP/1.1 200 OK\r\n\r\nfirst\n")?;
    say(&parts[1], &format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\none\n"))?;
    slow.wait_for_output("first\n")?;
    tunnel.wait_for_output("one\n")?;
    idle.write_stdin(b"\n")?;
    idle.wait_for_output("over TLS\n")?;

    let new = Agent::take_over(&bed, &options)?;
    // Who starts another agent may tell the old one to end.
    old.process().wait_for_line("the old agent to drain", |line| line.contains("draining"))?;
    old.process().signal(Signal::SIGTERM)?;
    old.process().wait_for_line("it to say so", |line| line.contains("draining already"))?;
    // For a moment both accept.
    wait_until("the new agent to serve", PATIENCE, || {
        bed.curl(URL).and_then(harness::clients::Curl::response).is_ok() && !new.records().is_empty()
    })?;
    // The connection is the old agent's, and good for one more request.
    ensure!(!idle.stdout().to_ascii_lowercase().contains("connection: close"), "{}", idle.stdout());
    idle.write_stdin(b"\n")?;
    wait_until("its last response", PATIENCE, || idle.stdout().matches("over TLS\n").count() == 2)?;
    ensure!(idle.stdout().to_ascii_lowercase().matches("connection: close").count() == 1, "{}", idle.stdout());

    say(&parts[0], "last\n")?;
    say(&parts[1], "two\n")?;
    slow.wait_for_output("first\nlast\n")?;
    tunnel.wait_for_output("one\ntwo\n")?;
    ensure!(old.process().is_running(), "{}", old.log_text());
    drop(parts);
    ensure!(slow.wait(PATIENCE)?.success() && tunnel.wait(PATIENCE)?.success(), "{slow:?} {tunnel:?}");
    ensure!(old.wait()?.code() == Some(0), "{}", old.log_text());
    let outcomes = old.records().iter().map(|record| record.text("outcome")).collect::<Vec<_>>();
    ensure!(outcomes.len() >= 4 && outcomes.iter().all(|outcome| outcome == "upgraded"), "{:?}", old.records());
    Ok(())
}

#[test]
fn an_old_agent_leaves_its_idle_clients_in_the_end() -> Result<()> {
    let bed = TestBed::new("idle")?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut old = Agent::start(&bed, &options.clone().args(&["--drain-timeout", "1s"]))?;
    let mut idle = begin(&bed, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
    idle.wait_for_output("over TLS\n")?;
    let _new = Agent::take_over(&bed, &options)?;
    ensure!(old.wait()?.code() == Some(0), "{}", old.log_text());
    ensure!(idle.wait(PATIENCE)?.success(), "reset: {idle:?}");
    ensure!(!old.log_text().contains("the drain timeout ran out"), "{}", old.log_text());
    Ok(())
}

#[test]
fn a_request_whose_head_is_still_arriving_is_answered() -> Result<()> {
    let bed = TestBed::new("half-head")?;
    let _origin = origin(&bed)?;
    let mut agent = Agent::start(&bed, &options(&bed)?)?;
    let (first, rest) = (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), format!("Host: {HOST}\r\n\r\n"));
    let begun = "GET / HTTP/1.1\r\n";
    let mut kept = talk(&bed)?;
    kept.write_stdin(format!("{first}{begun}").as_bytes())?;
    let mut new = talk(&bed)?;
    new.write_stdin(begun.as_bytes())?;
    kept.wait_for_output("over TLS\n")?;
    agent.process().signal(Signal::SIGTERM)?;
    agent.process().wait_for_line("the drain", |line| line.contains("draining"))?;
    // For longer than a new connection has to send something.
    thread::sleep(Duration::from_millis(500));
    for client in [&mut kept, &mut new] {
        client.write_stdin(rest.as_bytes())?;
        ensure!(client.wait(PATIENCE)?.success(), "{client:?}");
    }
    let texts = [kept.stdout(), new.stdout()].map(|text| text.to_ascii_lowercase());
    ensure!(texts[0].matches("over tls\n").count() == 2 && texts[1].matches("over tls\n").count() == 1, "{texts:?}");
    ensure!(texts.iter().all(|text| text.matches("connection: close").count() == 1), "{texts:?}");
    ensure!(agent.wait()?.success(), "{}", agent.log_text());
    Ok(())
}

/// A client that has connected, and has sent nothing.
fn talk(bed: &TestBed) -> Result<Running> {
    let mut client = bed.client_command(CLIENT)?.args(["talk", &address(bed)]).spawn()?;
    client.wait_for_line("the connection", |line| line.starts_with("peername"))?;
    Ok(client)
}

/// The kernel has its connection, which nobody can accept before something has come, or a second has passed (TCP_DEFER_ACCEPT).
#[test]
fn a_client_that_has_only_connected_when_the_agent_is_told_to_end_is_answered() -> Result<()> {
    let bed = TestBed::new("connected")?;
    let _origin = origin(&bed)?;
    let mut agent = Agent::start(&bed, &options(&bed)?)?;
    let client = talk(&bed)?;
    agent.process().signal(Signal::SIGTERM)?;
    agent.process().wait_for_line("the drain", |line| line.contains("draining"))?;
    // It does nothing between this and closing its listeners but to wait for such clients.
    wait_until("connects to be refused", PATIENCE, || !agent.namespaces().is_ok_and(|count| count > 0))?;
    check_last_answer(client)?;
    ensure!(agent.wait()?.success(), "{}", agent.log_text());
    Ok(())
}

/// Of an agent that shares no maps with the one before the listeners are others.
#[test]
fn a_client_that_has_only_connected_when_an_agent_with_other_maps_takes_over_is_answered() -> Result<()> {
    let bed = TestBed::new("connected-before")?;
    let _origin = origin(&bed)?;
    let mut agent = Agent::start(&bed, &options(&bed)?)?;
    let successor = connect(&bed)?;
    ask(&successor, NO_MAPS)?;
    say(&successor, &json!("taking"))?;
    let client = talk(&bed)?;
    say(&successor, &json!("done"))?;
    ensure!(hear(&successor)? == Some(json!("relieved")), "{}", agent.log_text());
    // Who has been accepted by then is served by the old agent to the end.
    wait_until("the listeners to be closed", PATIENCE, || bed.client().listening().is_ok_and(|left| left.is_empty()))?;
    check_last_answer(client)?;
    ensure!(agent.wait()?.success(), "{}", agent.log_text());
    Ok(())
}

/// A client that asks for something now is answered, and told that its connection ends with that.
fn check_last_answer(mut client: Running) -> Result<()> {
    client.write_stdin(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    ensure!(client.wait(PATIENCE)?.success(), "{client:?}");
    let text = client.stdout().to_ascii_lowercase();
    ensure!(text.ends_with("over tls\n") && text.contains("connection: close"), "{text}");
    Ok(())
}

#[test]
fn a_second_signal_ends_an_agent_that_drains_at_once() -> Result<()> {
    let bed = TestBed::new("urged")?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?;
    let mut old = Agent::start(&bed, &options.clone().args(&["--drain-timeout", "10m"]))?;
    let mut idle = begin(&bed, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
    idle.wait_for_output("over TLS\n")?;
    let _new = Agent::take_over(&bed, &options)?;
    old.process().signal(Signal::SIGTERM)?;
    old.process().wait_for_line("the first signal", |line| line.contains("draining already"))?;
    old.process().signal(Signal::SIGTERM)?;
    ensure!(old.wait()?.code() == Some(0), "{}", old.log_text());
    ensure!(!idle.wait(PATIENCE)?.success(), "what is cut off is reset");
    Ok(())
}

/// It would take its place back, and the next one would take it again, for as long as both pods are there.
#[test]
fn in_kubernetes_an_old_agent_waits_to_be_told_to_end() -> Result<()> {
    let bed = TestBed::new("kubernetes")?;
    let _origin = origin(&bed)?;
    let options = options(&bed)?.env("KUBERNETES_SERVICE_HOST", "192.0.2.1");
    let mut old = Agent::start(&bed, &options)?;
    let new = Agent::take_over(&bed, &options)?;
    old.process().wait_for_line("it to wait", |line| line.contains("waiting to be told to end"))?;
    ensure!(old.log_text().contains("ended; another agent serves"), "{}", old.log_text());
    let pid = old.process().pid();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let open: Vec<_> = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    ensure!(!open.iter().any(|file| file.to_string_lossy().contains("bpf")), "{open:?}");
    ensure!(bed.curl(URL)?.response()?.body == b"over TLS\n");
    ensure!(old.terminate()?.code() == Some(0) && new.terminate()?.code() == Some(0));
    // One that was told to end while it drained has no more to wait for.
    let mut old = Agent::start(&bed, &options)?;
    let idle = begin(&bed, &format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
    idle.wait_for_output("over TLS\n")?;
    let _new = Agent::take_over(&bed, &options)?;
    old.process().wait_for_line("it to drain", |line| line.contains("draining"))?;
    old.process().signal(Signal::SIGTERM)?;
    old.process().wait_for_line("it to say so", |line| line.contains("draining already"))?;
    old.process().signal(Signal::SIGTERM)?;
    ensure!(old.wait()?.code() == Some(0), "{}", old.log_text());
    Ok(())
}
