//! Connections that are reset in the middle of an exchange, by either end, or of which a client has closed its side.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    origin::{Reply, code, script},
    wait::{PATIENCE, wait_until},
};

use super::{
    CLIENT, HOST, HTTP2_BEGINS, broken::is_half_closed, configure, curl, origin, origin_http2, prior_knowledge::get,
};

/// What a response has before it is cut short has come by then: by a reset that comes as soon it would be lost.
const A_MOMENT: Duration = Duration::from_millis(200);

/// What has come by then is still there, and nothing looks complete.
#[test]
fn an_origin_that_resets_its_connection_in_the_middle_of_a_response_cuts_it_short() -> Result<()> {
    let bed = TestBed::new("resets-origin")?;
    let origin = origin(&bed)?
        .scripts(|request| {
            let head = match request.target.as_str() {
                "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
                "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n",
                _ => "HTTP/1.1 200 OK\r\n\r\n",
            };
            Some(script(move |mut wire| async move {
                wire.write(head.as_bytes()).await?;
                wire.write(b"first").await?;
                tokio::time::sleep(A_MOMENT).await;
                wire.reset_on_close()
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    // Codes of curl: 18, the response is shorter than it says; 56, the connection was reset, where nothing says how long it is; 92,
    // the stream was reset.
    let cases = [("--http1.1", [18, 18, 18]), ("--http1.0", [18, 56, 56]), ("--http2-prior-knowledge", [92, 92, 92])];
    let mut done = 0;
    for (version, expected) in cases {
        for (path, expected) in ["length", "chunks", "close"].into_iter().zip(expected) {
            let url = format!("http://{HOST}/{path}");
            let arguments = ["-q", "-sSN", "--max-time", "15", version, &url];
            let output = bed.client_command("curl")?.args(arguments).run()?;
            ensure!(output.code() == expected && output.text() == "first", "{version} {path}: {output:?}");
            done += 1;
            let record = &agent.wait_for_records(done)?[done - 1];
            ensure!(record.text("outcome") == "truncated", "{version} {path}: {record:?}");
        }
    }
    ensure!(origin.connections() == done, "{} connections", origin.connections());
    Ok(())
}

#[test]
fn an_origin_that_resets_a_stream_in_the_middle_of_a_response_cuts_it_short() -> Result<()> {
    let bed = TestBed::new("resets-stream")?;
    let _origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            loop {
                let stream = frames.request().await?;
                frames.head(stream, &[]).await?;
                frames.data(stream, b"first").await?;
                tokio::time::sleep(A_MOMENT).await;
                frames.reset(stream, code::INTERNAL_ERROR).await?;
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    for (done, (version, expected)) in
        [("--http1.1", 18), ("--http1.0", 56), ("--http2-prior-knowledge", 92)].into_iter().enumerate()
    {
        let output = curl(&bed, &["-N", version])?;
        ensure!(output.code() == expected && output.text() == "first", "{version}: {output:?}");
        let record = &agent.wait_for_records(done + 1)?[done];
        ensure!(record.text("outcome") == "truncated", "{version}: {record:?}");
    }
    Ok(())
}

/// Nobody reads what would tell.
#[test]
fn a_client_that_resets_its_connection_while_the_origin_takes_no_more_is_noticed() -> Result<()> {
    let bed = TestBed::new("resets-blocked")?;
    let (left, leaves) = std::sync::mpsc::channel();
    let (look, looks) = tokio::sync::watch::channel(());
    let origin = origin(&bed)?
        .scripts(move |_| {
            let (left, mut looks) = (left.clone(), looks.clone());
            Some(script(move |mut wire| async move {
                looks.changed().await?;
                while wire.read().await.is_ok_and(|bytes| !bytes.is_empty()) {}
                Ok(left.send(())?)
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    // More than all buffers on the way take.
    let mut sent = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", 64 << 20).into_bytes();
    sent.resize(sent.len() + (64 << 20), b'x');
    let address = bed.sockets(HOST, 80)[0].to_string();
    let mut client = bed.client_command(CLIENT)?.args(["talk", &address, "--reset"]).stdin(sent).spawn()?;
    origin.wait_for_requests(1)?;
    let (mut last, mut still) = (String::new(), 0);
    wait_until("the upload to stand still", PATIENCE, || {
        let waiting = unacknowledged(&bed);
        still = if waiting == last && !waiting.is_empty() { still + 1 } else { 0 };
        last = waiting;
        still > 200
    })?;
    ensure!(agent.records().is_empty());
    client.kill();
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "aborted", "{:?}", agent.records());
    look.send(())?;
    leaves.recv_timeout(PATIENCE)?;
    Ok(())
}

/// What is queued on the connections in the pod, where something is (/proc/net/tcp).
pub(super) fn unacknowledged(bed: &TestBed) -> String {
    let table = bed.client().run(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?)).unwrap_or_default();
    let queues = table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(4));
    queues.filter(|queue| *queue != "00000000:00000000").collect::<Vec<_>>().join(" ")
}

#[test]
fn a_client_of_http2_that_only_sends_no_more_is_answered() -> Result<()> {
    let bed = TestBed::new("resets-half-closed")?;
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = origin(&bed)?.handler(move |_| Reply::Later(released.clone(), Box::new(Reply::ok("fine")))).start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    // Of the last one half a head has come.
    let asked = [HTTP2_BEGINS, &get(1, "/first"), &get(3, "/second"), &get(5, "/third")[..12]].concat();
    let address = bed.sockets(HOST, 80)[0].to_string();
    let mut client = bed.client_command(CLIENT)?.args(["raw", &address, "--half-close"]).stdin(asked).spawn()?;
    origin.wait_for_requests(2)?;
    // Until the agent has seen that no more comes.
    wait_until("the end to arrive", PATIENCE, || is_half_closed(&bed))?;
    release.send_replace(true);
    ensure!(client.wait(PATIENCE)?.success() && client.stdout().matches("fine").count() == 2, "{}", client.stdout());
    let records = agent.wait_for_records(2)?;
    ensure!(records.iter().all(|record| record.text("outcome") == "upgraded"), "{records:?}");
    Ok(())
}

/// It says no more than that it sends nothing, and is asked whether it still reads.
#[test]
fn a_client_of_http2_that_closes_its_connection_gives_its_requests_up() -> Result<()> {
    let bed = TestBed::new("resets-closed")?;
    let (_release, released) = tokio::sync::watch::channel(false);
    let origin = origin(&bed)?.handler(move |_| Reply::Later(released.clone(), Box::new(Reply::ok("fine")))).start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let arguments = ["talk", &bed.sockets(HOST, 80)[0].to_string()];
    let mut client = bed.client_command(CLIENT)?.args(arguments).spawn()?;
    client.write_stdin(&[HTTP2_BEGINS, &get(1, "/")].concat())?;
    origin.wait_for_requests(1)?;
    // All that we have said by then it has read, so that its end is no reset: settings, and that we have taken its own.
    client.wait_for_bytes(b"\0\0\0\x04\x01\0\0\0\0")?;
    client.kill();
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "aborted", "{:?}", agent.records());
    Ok(())
}
