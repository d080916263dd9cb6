//! Requests that have come when their connections are accepted, after which nobody waits for their clients as a rule.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::Agent,
    origin::{Reply, script},
    process::Running,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

use super::{CLIENT, HOST, configure, origin, resets::unacknowledged};

const MIB: usize = 1024 * 1024;

/// A client that has sent this before its connection is accepted, and goes on with its standard input. Some reset the connection when that
/// ends.
fn ask(bed: &TestBed, agent: &mut Agent<'_>, bytes: &str, resets: bool) -> Result<Running> {
    agent.process().stop()?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let reset: &[_] = if resets { &["--reset"] } else { &[] };
    let client = bed.client_command(CLIENT)?.args(["talk", &address]).args(reset).spawn()?;
    client.write_stdin(bytes.as_bytes())?;
    wait_until("the request to arrive", PATIENCE, || !unacknowledged(bed).is_empty())?;
    agent.process().signal(Signal::SIGCONT)?;
    Ok(client)
}

fn get(version: &str) -> String {
    format!("GET / HTTP/{version}\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")
}

/// Where nobody has had to wait for the client before, it is looked for when the exchange has taken a while. No one is left whom the
/// origin could answer: the connection to it ends without the goodbye of TLS, as what breaks off does.
#[test]
fn a_client_that_resets_its_connection_while_the_origin_is_silent_is_noticed() -> Result<()> {
    let bed = TestBed::new("at-once-reset")?;
    let origin = origin(&bed)?
        .handler(|request| match request.target.as_str() {
            "/begun" => Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".into()),
            _ => Reply::Silence,
        })
        .start()?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    let post = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 5\r\n\r\nhello");
    let cases = [get("1.0"), get("1.1"), get("1.1").replace("GET /", "GET /begun"), get("1.1") + &get("1.1"), post];
    let cases = cases.iter().flat_map(|request| [(request, true), (request, false)]);
    for (done, (request, at_once)) in cases.enumerate() {
        let client = if at_once {
            ask(&bed, &mut agent, request, true)?
        } else {
            let (first, rest) = request.split_at(10);
            let client = ask(&bed, &mut agent, first, true)?;
            wait_until("it to be read", PATIENCE, || unacknowledged(&bed).is_empty())?;
            client.write_stdin(rest.as_bytes())?;
            client
        };
        origin.wait_for_requests(done + 1)?;
        if request.contains("/begun") {
            client.wait_for_output("half")?;
        }
        client.close_stdin();
        wait_until("the origin's connection to end", PATIENCE, || origin.open_connections() == 0)?;
        let record = &agent.wait_for_records(done + 1)?[done];
        ensure!(record.text("outcome") == "aborted", "{request:?} at once: {at_once}: {record:?}");
        let broken_off = origin.failures().iter().filter(|failure| failure.contains("close_notify")).count();
        ensure!(broken_off == done + 1, "{request:?} at once: {at_once}: {:?}", origin.failures());
    }
    Ok(())
}

#[test]
fn content_that_comes_later_is_waited_for() -> Result<()> {
    let bed = TestBed::new("at-once-upload")?;
    let origin = origin(&bed)?.handler(|request| Reply::ok(request.body.len().to_string())).start()?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    for (done, first) in [0, 100, 200_000].into_iter().enumerate() {
        let fields = format!("Connection: close\r\nContent-Length: {}\r\n", 4 * MIB);
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n");
        let client = ask(&bed, &mut agent, &(head + &"x".repeat(first)), false)?;
        client.write_stdin(&vec![b'x'; 4 * MIB - first])?;
        client.wait_for_output(&format!("\r\n\r\n{}", 4 * MIB))?;
        ensure!(agent.wait_for_records(done + 1)?[done].text("received") == (4 * MIB).to_string());
    }
    ensure!(origin.requests().len() == 3);
    Ok(())
}

#[test]
fn a_slow_reader_gets_all_of_its_only_response() -> Result<()> {
    let bed = TestBed::new("at-once-slow")?;
    let content: Vec<u8> = (0..16 * MIB).map(|number| b'a' + (number / 1000 % 26) as u8).collect();
    let (release, released) = tokio::sync::watch::channel(false);
    let rest = content.clone();
    let _origin = origin(&bed)?
        .scripts(move |_| {
            let (mut released, rest) = (released.clone(), rest.clone());
            Some(script(move |mut wire| async move {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\nat first ", 9 + rest.len());
                wire.write(head.as_bytes()).await?;
                released.wait_for(|released| *released).await?;
                wire.write(&rest).await
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    let mut client = ask(&bed, &mut agent, &get("1.1"), false)?;
    client.wait_for_output("at first ")?;
    client.signal(Signal::SIGSTOP)?;
    release.send_replace(true);
    let (mut last, mut still) = (String::new(), 0);
    wait_until("the response to stand still", PATIENCE, || {
        let waiting = unacknowledged(&bed);
        still = if waiting == last && !waiting.is_empty() { still + 1 } else { 0 };
        last = waiting;
        still > 200
    })?;
    ensure!(agent.records().is_empty());
    client.signal(Signal::SIGCONT)?;
    ensure!(client.wait(PATIENCE)?.success(), "{:?}", client.stderr());
    let output = client.stdout_bytes();
    ensure!(output.ends_with(&content), "{} bytes came", output.len());
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "upgraded");
    Ok(())
}

#[test]
fn an_agent_that_drains_answers_what_is_under_way() -> Result<()> {
    let bed = TestBed::new("at-once-drain")?;
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = origin(&bed)?.handler(move |_| Reply::Later(released.clone(), Box::new(Reply::ok("fine")))).start()?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    let mut client = ask(&bed, &mut agent, &get("1.1"), false)?;
    origin.wait_for_requests(1)?;
    agent.process().signal(Signal::SIGTERM)?;
    agent.process().wait_for_line("the drain", |line| line.contains("draining"))?;
    release.send_replace(true);
    ensure!(client.wait(PATIENCE)?.success() && client.stdout().ends_with("fine"), "{client:?}");
    ensure!(agent.wait()?.success(), "{}", agent.log_text());
    Ok(())
}

#[test]
fn a_connection_that_is_kept_is_good_for_more() -> Result<()> {
    let bed = TestBed::new("at-once-kept")?;
    let origin = origin(&bed)?.handler(|request| Reply::ok(request.target.clone())).start()?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    let ask_for = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut client = ask(&bed, &mut agent, &(ask_for("/one") + &ask_for("/two")), false)?;
    client.wait_for_output("\r\n\r\n/two")?;
    // For longer than a connection goes unwatched.
    thread::sleep(Duration::from_millis(1200));
    client.write_stdin(ask_for("/three").as_bytes())?;
    client.wait_for_output("\r\n\r\n/three")?;
    ensure!(client.is_running() && origin.requests().len() == 3);
    Ok(())
}
