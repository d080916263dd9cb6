//! Exchanges that break off: neither side is led to believe that they were complete.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::Agent,
    origin::{Reply, code, script},
    process::Running,
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;

use super::{CLIENT, HOST, URL, configure, curl, origin, origin_http2};

/// Answers that end too early.
const TRUNCATED: [&[u8]; 4] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all of it",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nnot all of it",
    // After a whole chunk, but without the last one.
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\nnot all of it\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\nnot all of it\r\n0\r\n",
];

fn last_record_is(agent: &Agent<'_>, count: usize, outcome: &str) -> Result<()> {
    let record = agent.wait_for_records(count)?.pop().context("no record")?;
    ensure!(record.text("outcome") == outcome, "{outcome} was expected: {record:?}");
    Ok(())
}

#[test]
fn an_answer_that_breaks_off_does_not_look_complete() -> Result<()> {
    for old_client in [false, true] {
        let bed = TestBed::new("http-truncated")?;
        let origin = origin(&bed)?
            .handler(|request| {
                let number = request.target.trim_start_matches('/').parse().unwrap_or(0_usize);
                Reply::RawThenClose(TRUNCATED[number].to_vec())
            })
            .start()?;
        let config = configure(&bed)?;
        let agent = bed.agent(&config)?;
        for (number, answer) in TRUNCATED.iter().enumerate() {
            let shown = String::from_utf8_lossy(answer);
            let curl = bed.curl(&format!("http://{HOST}/{number}"))?;
            let curl = if old_client { curl.args(["--http1.0"]) } else { curl };
            let result = curl.run()?;
            // 18: part of the body is missing. 56: the connection was reset, where its end would be that of the body.
            let code = if old_client && !shown.contains("Length") { 56 } else { 18 };
            ensure!(result.exit_code == code, "{shown:?} to an old client: {old_client}: {result:?}");
            ensure!(result.statuses() == [200] && b"not all of it".starts_with(&result.body), "{shown:?}: {result:?}");
            last_record_is(&agent, number + 1, "truncated")?;
            let record = &agent.records()[number];
            ensure!(record.text("status") == "200" && !record.text("error").is_empty(), "{record:?}");
        }
        let metrics = agent.metrics()?;
        ensure!(metrics.sum("egress_requests_total", &[("outcome", "truncated")]) == TRUNCATED.len() as f64);
        // Truncation is not repaired by asking again: the application may have used what it has.
        origin.wait_for_requests(TRUNCATED.len())?;
    }
    Ok(())
}

#[test]
fn an_answer_that_ends_with_the_connection_ends_with_the_goodbye_of_tls() -> Result<()> {
    let bed = TestBed::new("http-close-delimited")?;
    let answer = b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nuntil the end";
    let origin = origin(&bed)?
        .scripts(move |request| {
            let goodbye = request.target == "/goodbye";
            Some(script(move |mut wire| async move {
                wire.write(answer).await?;
                // Without it anybody on the way could cut the answer short.
                if goodbye { wire.shutdown().await } else { Ok(()) }
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let complete = bed.curl(&format!("http://{HOST}/goodbye"))?.response()?;
    ensure!(complete.body == b"until the end", "{complete:?}");
    last_record_is(&agent, 1, "upgraded")?;
    let cut = bed.curl(&format!("http://{HOST}/cut"))?.run()?;
    ensure!([18, 56].contains(&cut.exit_code), "{cut:?}");
    last_record_is(&agent, 2, "truncated")?;
    origin.wait_for_requests(2).map(drop)
}

/// To whom nothing but the end of the connection says that it has ended.
#[test]
fn a_slow_old_client_has_all_that_came_before_its_answer_broke_off() -> Result<()> {
    let bed = TestBed::new("http-truncated-slowly")?;
    let content = "what came ".repeat(30_000);
    let (release, released) = tokio::sync::watch::channel(false);
    let rest = content.clone();
    let _origin = origin(&bed)?
        .scripts(move |_| {
            let (mut released, rest) = (released.clone(), rest.clone());
            Some(script(move |mut wire| async move {
                wire.write(b"HTTP/1.1 200 OK\r\n\r\nat first ").await?;
                released.wait_for(|released| *released).await?;
                wire.write(rest.as_bytes()).await
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let mut client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(format!("GET / HTTP/1.0\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    client.wait_for_output("at first ")?;
    client.signal(Signal::SIGSTOP)?;
    release.send_replace(true);
    // The kernel has what the client has not taken.
    last_record_is(&agent, 1, "truncated")?;
    client.signal(Signal::SIGCONT)?;
    ensure!(!client.wait(PATIENCE)?.success(), "what broke off looks complete");
    let output = client.stdout();
    let (_, came) = output.split_once("at first ").context("half a head")?;
    ensure!(came == content, "{} of {} bytes came", came.len(), content.len());
    Ok(())
}

#[test]
fn a_client_that_leaves_in_the_middle_of_an_answer_is_noticed() -> Result<()> {
    let bed = TestBed::new("http-aborted")?;
    let (left, leaves) = std::sync::mpsc::channel();
    let origin = origin(&bed)?
        .scripts(move |_| {
            let left = left.clone();
            Some(script(move |mut wire| async move {
                wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
                while wire.write(b"5\r\nhello\r\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(left.send(())?)
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let mut client = bed.client_command("curl")?.args(["-q", "-sSN", URL]).spawn()?;
    client.wait_for_output("hellohello")?;
    ensure!(agent.records().is_empty());
    client.kill();
    // The origin need not work for nobody.
    leaves.recv_timeout(PATIENCE).context("the origin's connection stays open")?;
    last_record_is(&agent, 1, "aborted")?;
    ensure!(agent.metrics()?.sum("egress_requests_total", &[("outcome", "aborted")]) == 1.0);
    origin.wait_for_requests(1).map(drop)
}

#[test]
fn a_client_that_resets_its_connection_resets_its_stream_at_the_origin() -> Result<()> {
    let bed = TestBed::new("http-reset-http2")?;
    let (told, reset) = std::sync::mpsc::channel();
    let _origin = origin_http2(&bed)?
        .frames(move |mut frames| {
            let told = told.clone();
            async move {
                frames.greet(100).await?;
                let stream = frames.request().await?;
                told.send(None)?;
                let (number, code) = frames.reset_by_client().await?;
                told.send(Some((number == stream, code)))?;
                frames.closed().await
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let client = talk(&bed)?;
    ensure!(reset.recv_timeout(PATIENCE)?.is_none());
    client.close_stdin();
    ensure!(reset.recv_timeout(PATIENCE)? == Some((true, code::CANCEL)));
    last_record_is(&agent, 1, "aborted")
}

/// What has sent the end of its content is another task than what waits for the rest of its response.
#[test]
fn a_client_that_resets_its_connection_after_an_upload_beside_its_response_is_noticed() -> Result<()> {
    let bed = TestBed::new("http-reset-uploaded")?;
    let (told, events) = std::sync::mpsc::channel();
    let _origin = origin_http2(&bed)?
        .frames(move |mut frames| {
            let told = told.clone();
            async move {
                frames.greet(100).await?;
                let stream = frames.request().await?;
                frames.head(stream, &[]).await?;
                while !frames.sent().await?.2 {}
                told.send("uploaded")?;
                let (number, code) = frames.reset_by_client().await?;
                ensure!((number, code) == (stream, code::CANCEL), "{number} {code}");
                told.send("reset")?;
                frames.closed().await
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let client = bed.client_command(CLIENT)?.args(["talk", &address, "--reset"]).spawn()?;
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\n");
    client.write_stdin((head + "first").as_bytes())?;
    client.wait_for_output("HTTP/1.1 200 ")?;
    client.write_stdin(b"later")?;
    ensure!(events.recv_timeout(PATIENCE)? == "uploaded");
    client.close_stdin();
    ensure!(events.recv_timeout(PATIENCE)? == "reset");
    last_record_is(&agent, 1, "aborted")
}

/// The origin has answered, and takes no more of the request.
#[test]
fn a_client_that_leaves_ends_what_waits_to_be_sent() -> Result<()> {
    let bed = TestBed::new("http-reset-upload")?;
    let (told, reset) = std::sync::mpsc::channel();
    let _origin = origin_http2(&bed)?
        .frames(move |mut frames| {
            let told = told.clone();
            async move {
                frames.greet(100).await?;
                let stream = frames.request().await?;
                frames.head(stream, &[]).await?;
                frames.data(stream, b"early").await?;
                let (number, code) = frames.reset_by_client().await?;
                told.send((number == stream, code))?;
                frames.closed().await
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    // More than there is room for.
    let file = bed.dir().join("body");
    fs::write(&file, "x".repeat(200_000))?;
    let content = format!("@{}", file.display());
    let arguments = ["-q", "-sSN", "--http2-prior-knowledge", "--data-binary", &content, URL];
    let mut client = bed.client_command("curl")?.args(arguments).spawn()?;
    client.wait_for_output("early")?;
    client.kill();
    ensure!(reset.recv_timeout(PATIENCE)? == (true, code::CANCEL));
    last_record_is(&agent, 1, "aborted")
}

#[test]
fn a_client_that_only_sends_no_more_is_answered() -> Result<()> {
    let bed = TestBed::new("http-half-closed")?;
    let (release, released) = tokio::sync::watch::channel(false);
    let origin =
        origin(&bed)?.handler(move |_| Reply::Later(released.clone(), Box::new(Reply::ok("late but fine")))).start()?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut client = bed.client_command(CLIENT)?.args(["raw", &address, "--half-close"]).stdin(request).spawn()?;
    origin.wait_for_requests(1)?;
    // Until the agent has seen that no more comes.
    wait_until("the end to arrive", PATIENCE, || is_half_closed(&bed))?;
    release.send_replace(true);
    ensure!(client.wait(PATIENCE)?.success() && client.stdout().ends_with("late but fine"), "{}", client.stdout());
    Ok(())
}

/// Whether a connection in the pod waits to be closed by its other end: CLOSE_WAIT in /proc/net/tcp.
pub(super) fn is_half_closed(bed: &TestBed) -> bool {
    let table = bed.client().run(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?)).unwrap_or_default();
    table.lines().any(|line| line.split_whitespace().nth(3) == Some("08"))
}

/// A client that has sent a request, and resets its connection when its standard input ends.
fn talk(bed: &TestBed) -> Result<Running> {
    let address = bed.sockets(HOST, 80)[0].to_string();
    let client = bed.client_command(CLIENT)?.args(["talk", &address, "--reset"]).spawn()?;
    client.write_stdin(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    Ok(client)
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_leaves_no_half_request_to_be_believed() -> Result<()> {
    let bed = TestBed::new("http-half-request")?;
    let (ended, ends) = std::sync::mpsc::channel();
    let origin = origin(&bed)?
        .scripts(move |_| {
            let ended = ended.clone();
            Some(script(move |mut wire| async move {
                let mut body = Vec::new();
                while let Ok(bytes) = wire.read().await {
                    if bytes.is_empty() {
                        break;
                    }
                    body.extend_from_slice(&bytes);
                }
                Ok(ended.send(body)?)
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let heads = ["Content-Length: 100", "Transfer-Encoding: chunked"];
    for (done, head) in heads.iter().enumerate() {
        let body = if done == 0 { "amount=1" } else { "8\r\namount=1\r\n" };
        let sent = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{head}\r\n\r\n{body}");
        let client = bed.client_command(CLIENT)?.args(["raw", &address, "--half-close"]).stdin(sent);
        let output = client.run()?;
        ensure!(!output.text().starts_with("HTTP/1.1 200"), "{output:?}");
        let body = ends.recv_timeout(PATIENCE).context("the origin's connection stays open")?;
        let body = String::from_utf8_lossy(&body).into_owned();
        ensure!(!body.contains("0\r\n\r\n") && body.len() < 100, "the origin could believe {body:?}");
        let record = agent.wait_for_records(done + 1)?.pop().context("no record")?;
        ensure!(record.text("outcome") != "upgraded", "{record:?}");
    }
    origin.wait_for_requests(2).map(drop)
}

#[test]
fn an_answer_that_is_not_http_is_a_502() -> Result<()> {
    let bed = TestBed::new("http-nonsense")?;
    let answers: [&[u8]; 7] = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 twohundred OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX-A",
    ];
    let origin = origin(&bed)?
        .handler(move |request| {
            let number = request.target.trim_start_matches('/').parse().unwrap_or(0_usize);
            // Whoever greets waits for an answer.
            if number == 0 { Reply::Raw(answers[0].to_vec()) } else { Reply::RawThenClose(answers[number].to_vec()) }
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    for (number, answer) in answers.iter().enumerate() {
        let result = bed.curl(&format!("http://{HOST}/{number}"))?.run()?;
        let shown = String::from_utf8_lossy(answer);
        ensure!(result.statuses() == [502], "{shown:?}: {result:?}");
        let field = result.responses[0].header("proxy-status").context("no Proxy-Status")?;
        ensure!(field.contains("error=http_"), "{shown:?}: {field}");
        last_record_is(&agent, number + 1, "failed")?;
    }
    origin.wait_for_requests(answers.len()).map(drop)
}

#[test]
fn an_origin_that_dies_is_a_502_and_the_next_request_works() -> Result<()> {
    let bed = TestBed::new("http-dies")?;
    let origin = origin(&bed)?
        .handler(|request| match request.target.as_str() {
            "/reset" => Reply::Reset,
            "/close" => Reply::Close,
            _ => Reply::ok("fine"),
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    for path in ["reset", "close"] {
        let result = bed.curl(&format!("http://{HOST}/{path}"))?.run()?;
        ensure!(result.statuses() == [502], "{path}: {result:?}");
        let next = curl(&bed, &[])?.success()?;
        ensure!(next.text() == "fine", "{next:?}");
    }
    agent.wait_for_records(4)?;
    // The second `/close` was sent again on a fresh connection, since the pooled one might have been closing.
    let paths: Vec<_> = origin.wait_for_requests(5)?.into_iter().map(|request| request.target).collect();
    ensure!(paths == ["/reset", "/politics", "/close", "/close", "/politics"], "{paths:?}");
    Ok(())
}
