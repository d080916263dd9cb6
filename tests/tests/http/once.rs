//! Requests that may not be repeated, and connections that close whenever they like.

use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{TestBed, nginx::Site, origin::Reply};

use super::{CLIENT, HOST, agent_with_one_worker, configure, origin};

/// Requests to an origin of HTTP/1.1, and of HTTP/2.
const COUNTS: (usize, usize) = (100_000, 10_000);
/// On a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";

/// The origin closes connections before answers, after them and in their midst, without a word.
#[test]
fn a_post_reaches_an_origin_of_http1_at_most_once() -> Result<()> {
    let bed = TestBed::new("once")?;
    let seen = std::sync::Arc::new(Mutex::new(HashMap::<usize, u32>::new()));
    let (record, drawn) = (seen.clone(), AtomicU64::new(1));
    let _origin = origin(&bed)?
        .handler(move |request| {
            let number = request.target[1..].parse().expect("a number for a path");
            *record.lock().expect("no panic").entry(number).or_default() += 1;
            // The same every time: Knuth's MMIX generator.
            let draw =
                drawn.load(Ordering::Relaxed).wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            drawn.store(draw, Ordering::Relaxed);
            match (draw >> 33) % 100 {
                0 => Reply::Close,
                1 => Reply::Reset,
                2 => Reply::RawThenClose(FINE[..FINE.len() - 2].into()),
                3..6 => Reply::RawThenClose(FINE.into()),
                _ => Reply::Raw(FINE.into()),
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let answered = post(&bed, COUNTS.0)?;
    let seen = seen.lock().expect("no panic");
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(10).collect();
    ensure!(twice.is_empty(), "these came more than once: {twice:?}");
    check(&answered, COUNTS.0, |number| seen.contains_key(&number))?;
    // What was closed before it was answered: two in a hundred, and at most three that met a connection at its end. The client
    // takes what was cut short for an answer.
    let failed = answered.values().filter(|status| *status != "200").count();
    ensure!((COUNTS.0 * 19 / 1000..COUNTS.0 * 55 / 1000).contains(&failed), "{failed} were not answered");
    Ok(())
}

/// nginx takes fifty requests on a connection, and says so (GOAWAY) when others may be on their way.
#[test]
fn a_post_reaches_an_origin_of_http2_at_most_once() -> Result<()> {
    let bed = TestBed::new("once-http2")?;
    let site = Site::new(&[HOST], bed.pki().server(&[HOST])?).directives("keepalive_requests 50;");
    let nginx = bed.nginx().site(site).start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let answered = post(&bed, COUNTS.1)?;
    let failed = agent.records().into_iter().find(|record| record.text("outcome") != "upgraded");
    ensure!(failed.is_none(), "{failed:?}");
    let mut seen = HashMap::<usize, u32>::new();
    for request in nginx.requests()? {
        ensure!(request.get("protocol") == "HTTP/2.0", "{request:?}");
        *seen.entry(request.get("uri")[1..].parse()?).or_default() += 1;
    }
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(10).collect();
    ensure!(twice.is_empty(), "these came more than once: {twice:?}");
    check(&answered, COUNTS.1, |number| seen.contains_key(&number))?;
    // What it has not looked at it says, so that it can be sent again.
    ensure!(answered.values().all(|status| status == "404"), "{:?}", answered.values().find(|status| *status != "404"));
    Ok(())
}

/// The status that came for each number.
fn post(bed: &TestBed, count: usize) -> Result<HashMap<usize, String>> {
    let arguments = ["once", &bed.sockets(HOST, 80)[0].to_string(), "--count", &count.to_string()];
    let output = bed.client_command(CLIENT)?.args(arguments).patience(PATIENCE).run()?.success()?;
    let parse = |line: &str| {
        let (number, status) = line.split_once(' ').context("no status")?;
        Ok((number.parse()?, status.to_owned()))
    };
    output.text().lines().map(parse).collect()
}

/// Whether all were told something, and those with an answer of the origin's came there.
fn check(answered: &HashMap<usize, String>, count: usize, seen: impl Fn(usize) -> bool) -> Result<()> {
    ensure!(answered.len() == count, "{} of {count}", answered.len());
    let invented =
        answered.iter().find(|(number, status)| ["200", "404"].contains(&status.as_str()) && !seen(**number));
    ensure!(invented.is_none(), "{invented:?}");
    Ok(())
}
