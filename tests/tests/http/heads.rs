//! Heads that are short enough, and too many; and trailers.

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, LogLine},
    netns::Netns,
    origin::{Reply, Request, script},
    process::Running,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::{
    CLIENT, HOST, URL, configure, curl,
    limits::{PREFACE, TURNED_AWAY},
    origin, origin_http2,
    prior_knowledge::get,
};

/// How long a head may be here, and how much those of a pod may have together.
const LONGEST: usize = 16 << 20;
const ROOM: usize = 64 << 20;
/// Not much of a head: so many are taken without this.
const LONG: usize = 100_000;
const REASON: &str = "this pod's requests under way have 64 MiB of heads already";

/// As of one that sends long heads on each of its connections.
#[test]
fn a_pod_cannot_have_the_agent_keep_heads_without_end() -> Result<()> {
    let mut bed = TestBed::new("heads")?;
    let other = bed.add_pod("other")?;
    let (release, released) = watch::channel(false);
    let handler = move |request: &Request| match request.target.as_str() {
        "/held" => Reply::Later(released.clone(), Box::new(Reply::ok("fine"))),
        _ => Reply::ok("fine"),
    };
    let origin = origin(&bed)?.handler(handler).start()?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--max-head-bytes", &LONGEST.to_string()]);
    let agent = Agent::start(&bed, &options)?;
    let held = head("/held", LONGEST - 8192, true);
    let clients = (0..ROOM / LONGEST).map(|_| talk(&bed, bed.client(), &held)).collect::<Result<Vec<_>>>()?;
    origin.wait_for_requests(clients.len())?;
    let refused = || Ok::<_, anyhow::Error>(agent.metrics()?.sum(TURNED_AWAY, &[("limit", "pod_heads")]));
    let get = |pod: &Netns, length: usize| {
        let client = talk(&bed, pod, &head("/", length, true))?;
        wait_until("the response", PATIENCE, || client.stdout().contains("\r\n\r\n"))?;
        Ok::<_, anyhow::Error>(client.stdout())
    };
    let text = get(bed.client(), LONG)?;
    ensure!(text.starts_with("HTTP/1.1 503 ") && text.contains(REASON), "{text}");
    ensure!(get(bed.client(), 1000)?.starts_with("HTTP/1.1 200 "), "what is short is in nobody's way");
    // Its first connects can be refused.
    wait_until("the other pod to be served", PATIENCE, || {
        let curl = bed.pod_command(&other, "curl").and_then(|curl| curl.in_cgroup(bed.cgroup()));
        curl.and_then(|curl| curl.args(["-q", "-sS", URL]).run()).is_ok_and(|output| output.success().is_ok())
    })?;
    ensure!(get(&other, LONG)?.starts_with("HTTP/1.1 200 "), "one pod is in the way of the other");

    // One that does not come to its end is not waited for.
    talk(&bed, bed.client(), &head("/", LONG, false))?.wait_for_output(REASON)?;
    // Over HTTP/2 the connection ends with what does not, and with nothing else.
    let before = refused()?;
    let mut client = talk(&bed, bed.client(), &begun())?;
    wait_until("the end of the connection", PATIENCE, || refused().is_ok_and(|count| count == before + 1.0))?;
    client.wait(PATIENCE)?;
    let client = talk(&bed, bed.client(), &squeezed())?;
    client.wait_for_output(REASON)?;
    client.write_stdin(&frame(1, 5, 3, &fields()))?;
    client.wait_for_output("fine")?;

    release.send_replace(true);
    wait_until("them to count no more", PATIENCE, || {
        get(bed.client(), LONG).is_ok_and(|text| text.starts_with("HTTP/1.1 200 "))
    })
}

/// As of one that takes nothing of the long heads which an origin answers with.
#[test]
fn a_pod_cannot_have_the_agent_keep_heads_of_responses_without_end() -> Result<()> {
    const COUNT: usize = 2 + ROOM / LONGEST;
    for http2 in [false, true] {
        let bed = TestBed::new("heads-responses")?;
        let (release, released) = watch::channel(false);
        let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: {}\r\n\r\n", "x".repeat(LONGEST - 8192));
        let handler = move |request: &Request| match request.target.as_str() {
            "/short" => Reply::ok("fine"),
            _ => Reply::Later(released.clone(), Box::new(Reply::Raw(long.clone().into_bytes()))),
        };
        let origin = origin(&bed)?.handler(handler).start()?;
        let config = configure(&bed)?;
        let options = AgentOptions::new(config.path()).args(&["--max-head-bytes", &LONGEST.to_string()]);
        let agent = Agent::start(&bed, &options)?;
        let get = |target: &str| {
            let client = talk(&bed, bed.client(), &head(target, 0, true))?;
            wait_until("the response", PATIENCE, || client.stdout().contains("\r\n\r\n"))?;
            Ok::<_, anyhow::Error>(client.stdout())
        };
        let asked = if http2 {
            let requests = (0..COUNT as u8).map(|number| frame(1, 5, 1 + 2 * number, &fields())).collect::<Vec<_>>();
            vec![[PREFACE.to_vec(), frame(4, 0, 0, &[]), requests.concat()].concat()]
        } else {
            vec![head("/", 0, true); COUNT]
        };
        let clients = asked.iter().map(|asked| talk(&bed, bed.client(), asked)).collect::<Result<Vec<_>>>()?;
        origin.wait_for_requests(COUNT)?;
        clients.iter().try_for_each(|client| client.signal(Signal::SIGSTOP))?;
        release.send_replace(true);
        let refused =
            || agent.metrics().is_ok_and(|metrics| metrics.sum(TURNED_AWAY, &[("limit", "pod_heads")]) >= 1.0);
        wait_until("one to be too many", PATIENCE, refused).with_context(|| format!("HTTP/2: {http2}"))?;
        ensure!(get("/short")?.starts_with("HTTP/1.1 200 "), "what is short is in nobody's way");
        clients.iter().try_for_each(|client| client.signal(Signal::SIGCONT))?;
        // What it has asked for may be done.
        let told = |client: &Running| client.stdout().contains("the origin has answered, but");
        wait_until("one to be told", PATIENCE, || clients.iter().any(told))?;
        // The others have theirs, be it on the same connection.
        let records = agent.wait_for_records(COUNT + 1)?;
        let answered = records.iter().filter(|record| record.text("outcome") == "upgraded").count();
        ensure!(answered > ROOM / LONGEST, "HTTP/2: {http2}: {records:?}");
        drop(clients);
        wait_until("them to count no more", PATIENCE, || get("/").is_ok_and(|text| text.starts_with("HTTP/1.1 200 ")))?;
    }
    Ok(())
}

/// While its content is still to come.
#[test]
fn the_head_of_a_response_counts_until_the_client_has_taken_it() -> Result<()> {
    const COUNT: usize = 1 + ROOM / LONGEST;
    let bed = TestBed::new("heads-taken")?;
    let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nX: {}\r\n\r\nfirst", "x".repeat(LONGEST - 8192));
    let lasting = move |_: &Request| {
        let long = long.clone();
        Some(script(|mut wire| async move {
            wire.write(long.as_bytes()).await?;
            wire.read().await.map(drop)
        }))
    };
    let _origin = origin(&bed)?.scripts(lasting).start()?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--max-head-bytes", &LONGEST.to_string()]);
    let _agent = Agent::start(&bed, &options)?;
    let http2 = [PREFACE.to_vec(), frame(4, 0, 0, &[]), frame(1, 5, 1, &fields())].concat();
    for asked in [head("/", 0, true), http2] {
        let mut clients = Vec::new();
        for number in 0..COUNT {
            clients.push(talk(&bed, bed.client(), &asked)?);
            clients[number].wait_for_output("first").with_context(|| number.to_string())?;
        }
    }
    Ok(())
}

/// As of an origin that ends each response with them, and a client that takes none of it.
#[test]
fn trailers_of_responses_count_as_heads_until_the_client_has_taken_them() -> Result<()> {
    const COUNT: u32 = 4;
    let bed = TestBed::new("heads-trailers")?;
    let _origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            loop {
                let stream = frames.request().await?;
                frames.head(stream, &[]).await?;
                frames.data(stream, b"first").await?;
                frames.data(stream, b" last").await?;
                frames.trailers_as(stream, &repeated(LONGEST / 4000 - 100)).await?;
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--workers", "1", "--max-head-bytes", &LONGEST.to_string()]);
    let agent = Agent::start(&bed, &options)?;
    let served = || curl(&bed, &[]).is_ok_and(|output| output.text() == "first last" && output.code() == 0);
    ensure!(served(), "{}", agent.log_text());
    // SETTINGS_INITIAL_WINDOW_SIZE is 5: the client takes no more of each response.
    let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0, 5]);
    let streams = || (0..COUNT).map(|number| 1 + 2 * number);
    let asked = streams().map(|stream| get(stream, "/")).collect::<Vec<_>>();
    let client = talk(&bed, bed.client(), &[PREFACE.to_vec(), settings, asked.concat()].concat())?;
    wait_until("one to be too many", PATIENCE, || !served())?;
    let truncated = |record: &LogLine| {
        record.text("outcome") == "truncated" && record.text("error").contains("there is no room for the trailers")
    };
    wait_until("the record of it", PATIENCE, || agent.records().iter().any(truncated))
        .with_context(|| agent.log_text())?;
    ensure!(agent.metrics()?.sum(TURNED_AWAY, &[("limit", "pod_heads")]) >= 1.0);
    // The others are in order.
    ensure!(client.stdout().matches("first").count() == COUNT as usize, "{}", client.stdout());
    // RST_STREAM
    let given_up = streams().flat_map(|stream| frame(3, 0, stream as u8, &[0, 0, 0, 8])).collect::<Vec<_>>();
    client.write_stdin(&given_up)?;
    wait_until("them to count no more", PATIENCE, served)
}

/// As of one whose requests do not go on, with trailers on each of its connections.
#[test]
fn a_pod_cannot_have_the_agent_keep_trailers_without_end() -> Result<()> {
    const COUNT: usize = 4 << 20;
    let bed = TestBed::new("heads-trailers-asked")?;
    let _origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet_with_window(0).await?;
            frames.closed().await
        })
        .start()?;
    let config = configure(&bed)?;
    let options = AgentOptions::new(config.path()).args(&["--max-head-bytes", &LONGEST.to_string()]);
    let agent = Agent::start(&bed, &options)?;
    let post = [&[0x83], &fields()[1..]].concat();
    let trailers = repeated(COUNT / 4000 - 50);
    let asked =
        [PREFACE.to_vec(), frame(4, 0, 0, &[]), frame(1, 4, 1, &post), frame(0, 0, 1, b"x"), frame(1, 5, 1, &trailers)];
    let clients =
        (0..2 + ROOM / COUNT).map(|_| talk(&bed, bed.client(), &asked.concat())).collect::<Result<Vec<_>>>()?;
    wait_until("some to be too many", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum(TURNED_AWAY, &[("limit", "pod_heads")]) >= 1.0)
    })?;
    // RST_STREAM: ENHANCE_YOUR_CALM
    let reset = frame(3, 0, 1, &[0, 0, 0, 11]);
    wait_until("them to be told", PATIENCE, || {
        clients.iter().any(|client| client.stdout_bytes().windows(reset.len()).any(|window| window == reset))
    })
}

fn talk(bed: &TestBed, pod: &Netns, bytes: &[u8]) -> Result<Running> {
    let command = bed.pod_command(pod, CLIENT)?.in_cgroup(bed.cgroup())?;
    let client = command.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    // It may be told that it is too much before it has sent all.
    client.write_stdin(bytes).ok();
    Ok(client)
}

/// A head of about this length, or all of it but its end.
fn head(target: &str, length: usize, is_whole: bool) -> Vec<u8> {
    let end = if is_whole { "\r\n\r\n" } else { "" };
    format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nX: {}{end}", "x".repeat(length)).into_bytes()
}

/// `GET http /` for HOST (RFC 7541 appendix A).
fn fields() -> Vec<u8> {
    [&[0x82, 0x86, 0x84, 0x41, HOST.len() as u8], HOST.as_bytes()].concat()
}

/// The beginning of a connection whose first head is long, and does not come to its end.
fn begun() -> Vec<u8> {
    let field = [&[0, 1, b'x', 100][..], &[b'x'; 100]].concat();
    let block = [fields(), field.repeat(LONG / 100)].concat();
    let frames = block.chunks(16 * 1024).enumerate();
    let frames = frames.map(|(index, part)| if index == 0 { frame(1, 1, 1, part) } else { frame(9, 0, 1, part) });
    [PREFACE.to_vec(), frame(4, 0, 0, &[]), frames.collect::<Vec<_>>().concat()].concat()
}

/// The beginning of a connection whose first head has a field of 3900 bytes, and then that one again and again, each time in a byte (RFC
/// 7541 section 6.1).
fn squeezed() -> Vec<u8> {
    let repeated = repeated(1 + LONG / 3900);
    [PREFACE.to_vec(), frame(4, 0, 0, &[]), frame(1, 5, 1, &[fields(), repeated].concat())].concat()
}

/// As trailers: a field of 3900 bytes so many times, after the first one each time in a byte.
fn repeated(count: usize) -> Vec<u8> {
    [&[0x40, 1, b'x', 0x7f, 0xbd, 0x1d][..], &[b'x'; 3900], &vec![0xbe; count - 1]].concat()
}

/// A frame of HTTP/2: its type, its flags, its stream, and what it says.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}
