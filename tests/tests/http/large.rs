//! Bodies that are larger than the agent may become.

mod announced;
mod switched;
mod waited;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::Agent,
    origin::{Origin, Reply, Request, script},
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

use super::{Answers, CLIENT, HOST, URL, configure, converse, curl, origin, origin_http2};

const MIB: u64 = 1024 * 1024;
const SIZE: u64 = 64 * MIB;
/// How much larger the agent may become at most: four connections' buffers and room for the allocator's whims.
const GROWTH: u64 = 16 * MIB;

/// The most memory that the agent ever had, in bytes.
pub(crate) fn peak_memory(agent: &mut Agent<'_>) -> Result<u64> {
    of_status(agent, "VmHWM:")
}

/// The memory that the agent has, in bytes.
pub(crate) fn memory(agent: &mut Agent<'_>) -> Result<u64> {
    of_status(agent, "VmRSS:")
}

fn of_status(agent: &mut Agent<'_>, name: &'static str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.process().pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
    Ok(1024 * line.trim().trim_end_matches(" kB").parse::<u64>()?)
}

/// Bytes of which each MiB differs from the others.
fn piece(number: u64) -> Vec<u8> {
    vec![b'a' + (number % 26) as u8; MIB as usize]
}

/// A head that announces SIZE bytes, one way or the other.
fn framing(chunked: bool) -> String {
    if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {SIZE}") }
}

fn framed(chunked: bool, piece: &[u8]) -> Vec<u8> {
    match chunked {
        true => [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat(),
        false => piece.to_vec(),
    }
}

#[test]
fn a_large_answer_streams_through_a_small_agent() -> Result<()> {
    let bed = TestBed::new("http-download")?;
    let _origin = origin(&bed)?
        .scripts(|request| {
            let chunked = request.target == "/chunked";
            Some(script(move |mut wire| async move {
                wire.write(format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", framing(chunked)).as_bytes()).await?;
                for number in 0..SIZE / MIB {
                    wire.write(&framed(chunked, &piece(number))).await?;
                }
                if chunked {
                    wire.write(b"0\r\n\r\n").await?;
                }
                wire.shutdown().await
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    let before = peak_memory(&mut agent)?;
    let expected: Vec<u8> = (0..SIZE / MIB).flat_map(piece).collect();
    for (done, path) in ["/plain", "/chunked"].iter().enumerate() {
        let response = bed.curl(&format!("http://{HOST}{path}"))?.response()?;
        ensure!(response.body == expected, "{path}: {} bytes of another content", response.body.len());
        let record = agent.wait_for_records(done + 1)?.pop().context("no record")?;
        ensure!(record.text("sent") == SIZE.to_string(), "{record:?}");
    }
    let growth = peak_memory(&mut agent)?.saturating_sub(before);
    ensure!(growth < GROWTH, "the agent grew by {} KiB", growth / 1024);
    Ok(())
}

#[test]
fn a_large_request_streams_through_a_small_agent() -> Result<()> {
    let bed = TestBed::new("http-upload")?;
    let origin = origin(&bed)?
        .scripts(|request| {
            let chunked = request.header("transfer-encoding").is_some();
            Some(script(move |mut wire| async move {
                // Chunks are not taken apart: that they end is enough.
                let (mut count, mut end) = (0, Vec::new());
                while (chunked && !end.ends_with(b"0\r\n\r\n")) || (!chunked && count < SIZE) {
                    let bytes = wire.read().await?;
                    anyhow::ensure!(!bytes.is_empty(), "the body ends after {count} bytes");
                    count += bytes.len() as u64;
                    end = [&end[end.len().saturating_sub(5)..], &bytes].concat();
                }
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{count:10}");
                wire.write(answer.as_bytes()).await?;
                wire.shutdown().await
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    let before = peak_memory(&mut agent)?;
    let file = bed.dir().join("body");
    fs::write(&file, vec![b'x'; SIZE as usize])?;
    for (done, coding) in ["X-A: 1", "Transfer-Encoding: chunked"].iter().enumerate() {
        let output = curl(&bed, &["-H", coding, "-H", "Expect:", "-T", &file.display().to_string()])?.success()?;
        let received: u64 = output.text().trim().parse()?;
        let overhead = if done == 0 { 0 } else { MIB };
        ensure!((SIZE..=SIZE + overhead).contains(&received), "{coding}: {received} bytes");
        let record = agent.wait_for_records(done + 1)?.pop().context("no record")?;
        ensure!(record.text("received") == SIZE.to_string(), "{record:?}");
    }
    ensure!(origin.failures().is_empty(), "{:?}", origin.failures());
    let growth = peak_memory(&mut agent)?.saturating_sub(before);
    ensure!(growth < GROWTH, "the agent grew by {} KiB", growth / 1024);
    Ok(())
}

#[test]
fn a_slow_reader_slows_the_origin_down() -> Result<()> {
    let bed = TestBed::new("http-slow-reader")?;
    let written = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&written);
    let _origin = origin(&bed)?
        .scripts(move |_| {
            let counter = Arc::clone(&counter);
            Some(script(move |mut wire| async move {
                wire.write(format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", framing(false)).as_bytes()).await?;
                for number in 0..SIZE / MIB {
                    wire.write(&piece(number)).await?;
                    counter.fetch_add(MIB, Ordering::Relaxed);
                }
                wire.shutdown().await
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    let before = peak_memory(&mut agent)?;
    // A reader that is stopped in the middle reads nothing; what the kernel buffers for it is a few MiB.
    let arguments = ["-q", "-sS", "--limit-rate", "1M", "-o", "/dev/null", URL];
    let mut reader = bed.client_command("curl")?.args(arguments).spawn()?;
    wait_until("the answer to begin", PATIENCE, || written.load(Ordering::Relaxed) > 0)?;
    reader.signal(Signal::SIGSTOP)?;
    let held_at = held_up_at(&written)?;
    ensure!(held_at < SIZE / 2, "the origin could write {} MiB to a reader that stands still", held_at / MIB);
    ensure!(agent.records().is_empty());
    let growth = peak_memory(&mut agent)?.saturating_sub(before);
    ensure!(growth < GROWTH, "the agent grew by {} KiB", growth / 1024);
    reader.kill();
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "aborted");
    Ok(())
}

#[test]
fn a_slow_origin_slows_the_client_down() -> Result<()> {
    let bed = TestBed::new("http-slow-origin")?;
    let (go, gone) = tokio::sync::watch::channel(false);
    let origin = origin(&bed)?
        .scripts(move |_| {
            let mut gone = gone.clone();
            Some(script(move |mut wire| async move {
                gone.wait_for(|go| *go).await?;
                let mut count = 0;
                while count < SIZE {
                    let bytes = wire.read().await?;
                    anyhow::ensure!(!bytes.is_empty(), "the body ends after {count} bytes");
                    count += bytes.len() as u64;
                }
                wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine").await?;
                wire.shutdown().await
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    let before = peak_memory(&mut agent)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\nConnection: close\r\n\r\n", framing(false));
    let body = [head.into_bytes(), vec![b'x'; SIZE as usize]].concat();
    let mut client = bed.client_command(CLIENT)?.args(["raw", &address]).stdin(body).spawn()?;
    origin.wait_for_requests(1)?;
    let sent = || agent_receive_queue_is_full(&bed);
    wait_until("the client to be held up", PATIENCE, sent)?;
    ensure!(client.is_running() && agent.records().is_empty());
    let growth = peak_memory(&mut agent)?.saturating_sub(before);
    ensure!(growth < GROWTH, "the agent grew by {} KiB", growth / 1024);
    go.send_replace(true);
    client.wait_for_output("fine")?;
    ensure!(client.wait(PATIENCE)?.success(), "{:?}", client.stderr());
    ensure!(agent.wait_for_records(1)?[0].text("received") == SIZE.to_string());
    Ok(())
}

/// How much could be written, once nothing more can.
fn held_up_at(written: &AtomicU64) -> Result<u64> {
    let mut last = (u64::MAX, Instant::now());
    wait_until("the origin to be held up", PATIENCE, || {
        let now = written.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_millis(500)
    })?;
    Ok(last.0)
}

/// Whether bytes wait in the client's loopback connection with the agent because the agent does not read them: the sum
/// of the queues in /proc/net/tcp stays the same over a while.
fn agent_receive_queue_is_full(bed: &TestBed) -> bool {
    let queues = || bed.client().run(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?)).unwrap_or_default();
    let waiting = |table: &str| {
        let sizes = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(4)?.split_once(':'));
        sizes.filter_map(|(_, received)| u64::from_str_radix(received, 16).ok()).sum::<u64>()
    };
    let first = waiting(&queues());
    first > 0 && (0..100).all(|_| waiting(&queues()) == first)
}

#[test]
fn large_heads_of_responses_arrive_over_both_versions() -> Result<()> {
    let bed = TestBed::new("large-heads")?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let fields = |count: usize, length: usize| -> Vec<_> {
        // Each value is another one, that none can stand for another.
        (0..count).map(|number| (format!("X-{number}"), format!("{number:0>length$}"))).collect()
    };
    for fields in [fields(1000, 10), fields(8, 8000)] {
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let get = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        let answer = format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n");
        let (_answers, origin) = Answers::start(&bed, answer.as_bytes())?;
        let output = converse(&bed, get.as_str())?;
        ensure!(output.text() == answer, "{output:?}");
        drop(origin);
        let _origin = origin_http2(&bed)?
            .handler(move |_| Reply::Response { status: 200, headers: fields.clone(), body: Vec::new() })
            .start()?;
        let output = converse(&bed, get.as_str())?;
        ensure!(output.text().starts_with(&format!("HTTP/1.1 200 OK\r\n{lines}")), "{output:?}");
    }
    Ok(())
}

/// Many look for an answer only when they have sent everything.
#[test]
fn an_early_answer_is_there_for_a_client_that_sends_everything_first() -> Result<()> {
    let bed = TestBed::new("large-early")?;
    let _origin = refusing(&bed)?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let mut sent = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes();
    sent.resize(sent.len() + SIZE as usize, b'x');
    let address = bed.sockets(HOST, 80)[0].to_string();
    let output = bed.client_command(CLIENT)?.args(["raw", &address]).stdin(sent).run()?.success()?;
    ensure!(output.text().starts_with("HTTP/1.1 413 ") && output.text().ends_with("too much"), "{output:?}");
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("received").parse::<u64>()? < SIZE, "the origin was sent all of it: {record:?}");
    Ok(())
}

/// Nobody waits for the rest of what a client sends when the agent is to end.
#[test]
fn an_agent_that_drains_ends_a_connection_that_has_its_early_answer() -> Result<()> {
    /// Much longer than that takes, and shorter than such a client has otherwise.
    const SOON: Duration = Duration::from_secs(15);
    let bed = TestBed::new("large-early-drain")?;
    let _origin = refusing(&bed)?;
    let config = configure(&bed)?;
    let mut agent = bed.agent(&config)?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes())?;
    client.wait_for_output("too much")?;
    agent.process().signal(Signal::SIGTERM)?;
    let begin = Instant::now();
    let mut has_ended = false;
    while !has_ended && begin.elapsed() < SOON {
        // It goes on until its connection ends.
        client.write_stdin(b"x").ok();
        thread::sleep(Duration::from_millis(200));
        has_ended = !agent.process().is_running();
    }
    ensure!(has_ended, "it still waits");
    Ok(())
}

/// An origin that answers before it has read anything, and takes no notice of what comes.
fn refusing(bed: &TestBed) -> Result<Origin> {
    let refusal = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 8\r\n\r\ntoo much";
    let refuse = move |_: &Request| {
        Some(script(move |mut wire| async move {
            wire.write(refusal).await?;
            while !wire.read().await?.is_empty() {}
            Ok(())
        }))
    };
    origin(bed)?.scripts(refuse).start()
}
