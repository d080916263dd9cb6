//! Responses that nobody reads: how much is kept of them, and what becomes of others.

use std::time::Instant;

use harness::{agent::Agent, origin::Request, wait::wait_until};
use nix::sys::signal::Signal;

use super::*;
use crate::{HTTP2_BEGINS, large::memory, prior_knowledge::get, sharing::at_once};

/// The agent's memory once it does not change any more, as nothing comes.
fn memory_at_rest(agent: &mut Agent<'_>) -> Result<u64> {
    let mut last = (0, Instant::now());
    wait_until("the origin to be held up", PATIENCE, || {
        let now = memory(agent).unwrap_or(last.0);
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(2)
    })?;
    Ok(last.0)
}

#[test]
fn readers_that_stand_still_hold_up_nobody_else_on_their_connection() -> Result<()> {
    let bed = TestBed::new("http2-slow-readers")?;
    let content = bytes::Bytes::from(vec![b'x'; 32 << 20]);
    let origin = origin_http2(&bed)?
        .handler(move |request| match request.target.as_str() {
            "/slow" => Reply::status(200, &[], content.clone()),
            _ => Reply::ok("fine"),
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let mut readers = Vec::new();
    for _ in 0..8 {
        // It reads the first line that it is sent, and then nothing until it is killed.
        let arguments = ["-q", "-sS", "--limit-rate", "1K", "-o", "/dev/null", &format!("http://{HOST}/slow")];
        readers.push(bed.client_command("curl")?.args(arguments).spawn()?);
    }
    origin.wait_for_requests(8)?;
    let output = bed.client_command(CLIENT)?.args(["http", &address, "--count", "20"]).run()?.success()?;
    ensure!(output.text().matches("fine").count() == 20, "{output:?}");
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    ensure!(agent.wait_for_records(20)?.iter().all(|record| record.text("outcome") == "upgraded"));
    readers.iter_mut().for_each(harness::process::Running::kill);
    Ok(())
}

#[test]
fn once_some_readers_stand_still_little_is_kept_for_others_who_do_and_all_get_everything() -> Result<()> {
    // The first ones have their windows before anybody can know that they will not read.
    const COUNTS: [usize; 2] = [8, 24];
    // Of which the kernel keeps half.
    const SIZE: usize = 8 << 20;
    let bed = TestBed::new("http2-standstill")?;
    let (release, released) = watch::channel(false);
    let body = vec![b'x'; SIZE];
    let reply = move |_: &Request| Reply::Later(released.clone(), Box::new(Reply::ok(body.clone())));
    let origin = origin_http2(&bed)?.handler(reply).start()?;
    let config = configure(&bed)?;
    let mut agent = agent_with_one_worker(&bed, &config)?;
    let mut readers = Vec::new();
    for (before, count) in [(0, COUNTS[0]), (COUNTS[0], COUNTS[1])] {
        let memory_before = memory(&mut agent)?;
        // The last one of each is the one that counts.
        let arguments = ["--max-time", "100", "-w", "%{http_code} %{size_download}\n"];
        let reader = at_once(&bed, count, &arguments)?.spawn()?;
        origin.wait_for_requests(before + count)?;
        reader.signal(Signal::SIGSTOP)?;
        release.send_replace(true);
        let growth = memory_at_rest(&mut agent)?.saturating_sub(memory_before);
        release.send_replace(false);
        // With the window that one has alone it would be 48 MiB at least.
        ensure!(before == 0 || growth < 16 << 20, "the agent grew by {} KiB", growth >> 10);
        readers.push((reader, count));
    }
    for (mut reader, count) in readers {
        reader.signal(Signal::SIGCONT)?;
        reader.wait(PATIENCE)?;
        ensure!(reader.stdout() == format!("200 {SIZE}\n").repeat(count), "{}", reader.stdout());
    }
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    Ok(())
}

#[test]
fn little_is_kept_for_those_who_ask_for_much_at_once_and_read_nothing() -> Result<()> {
    // Of each client, each of which takes about what a connection to the origin has room for.
    const COUNT: u32 = 120;
    let bed = TestBed::new("http2-unread")?;
    let content = bytes::Bytes::from(vec![b'x'; 4 << 20]);
    let origin = origin_http2(&bed)?.handler(move |_| Reply::status(200, &[], content.clone())).start()?;
    let config = configure(&bed)?;
    let mut agent = agent_with_one_worker(&bed, &config)?;
    let before = memory(&mut agent)?;
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    let (preface, _) = HTTP2_BEGINS.split_at(HTTP2_BEGINS.len() - 9);
    let mut asked = [preface, b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0"].concat();
    (0..COUNT).for_each(|at| asked.extend(get(1 + 2 * at, "/")));
    let address = bed.sockets(HOST, 80)[0].to_string();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let client = bed.client_command(CLIENT)?.args(["talk", &address]).spawn()?;
        client.write_stdin(&asked)?;
        clients.push(client);
    }
    origin.wait_for_requests(2 * COUNT as usize)?;
    let growth = memory_at_rest(&mut agent)?.saturating_sub(before);
    // With the window that one has alone it would be 480 MiB.
    ensure!(growth < 80 << 20, "the agent grew by {} KiB", growth >> 10);
    Ok(())
}
