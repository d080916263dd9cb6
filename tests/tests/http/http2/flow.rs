//! What goes on at the same time: both ways, and on other streams.

use std::time::Instant;

use super::*;

#[test]
fn an_early_answer_arrives_while_the_body_is_still_being_sent() -> Result<()> {
    let bed = TestBed::new("http2-early")?;
    let origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            let stream = frames.request().await?;
            frames.answer(stream, b"too much").await?;
            // It has its answer, and is not read any further (RFC 9113 section 8.1).
            frames.reset(stream, code::NO_ERROR).await?;
            let next = frames.request().await?;
            frames.answer(next, b"next").await?;
            frames.closed().await
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    // A client that has announced more than it sends until it has its answer.
    let address = bed.sockets(HOST, 80)[0].to_string();
    let sent = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\nthe beginning");
    let mut client = bed.client_command(CLIENT)?.args(["raw", &address]).stdin(sent).spawn()?;
    client.wait_for_output("too much\r\n0\r\n\r\n")?;
    client.kill();
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "upgraded");
    // The connection goes on.
    ensure!(curl(&bed, &[])?.success()?.text() == "next");
    ensure!(origin.connections() == 1);
    Ok(())
}

/// What a client has sent before it was answered goes to the origin, as it would without us, and the client need not wait for that.
#[test]
fn what_was_sent_of_an_upload_goes_on_after_its_response() -> Result<()> {
    // Two reads of ours: the second one waits for room.
    const LENGTH: usize = 20_000;
    let bed = TestBed::new("http2-goes-on")?;
    let (told, rest) = std::sync::mpsc::channel();
    let (widen, widened) = watch::channel(());
    let _origin = origin_http2(&bed)?
        .frames(move |mut frames| {
            let (told, mut widened) = (told.clone(), widened.clone());
            async move {
                frames.greet_with_window(5).await?;
                let known = frames.request().await?;
                frames.answer(known, b"known").await?;
                let stream = frames.request().await?;
                let mut count = frames.sent().await?.1.len();
                frames.answer(stream, b"enough").await?;
                widened.changed().await?;
                frames.widen(stream, u32::try_from(LENGTH)?).await?;
                loop {
                    let (_, content, is_last) = frames.sent().await?;
                    count += content.len();
                    if is_last {
                        break;
                    }
                }
                told.send(count)?;
                frames.closed().await
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &[])?.success()?.text() == "known");
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {LENGTH}\r\n\r\n");
    let address = bed.sockets(HOST, 80)[0].to_string();
    let started = Instant::now();
    let output =
        bed.client_command(CLIENT)?.args(["raw", &address]).stdin(head + &"x".repeat(LENGTH)).run()?.success()?;
    ensure!(output.text().contains("enough"), "{output:?}");
    // The rest is given up after 5 s.
    ensure!(started.elapsed() < Duration::from_secs(4), "the client's connection is held");
    widen.send(())?;
    ensure!(rest.recv_timeout(PATIENCE)? == LENGTH);
    Ok(())
}

/// What a client still sends then is read and forgotten: the origin must not get what comes after it.
#[test]
fn an_upload_ends_with_its_response() -> Result<()> {
    let bed = TestBed::new("http2-ends")?;
    let (reset, resets) = std::sync::mpsc::channel();
    let (widen, widened) = watch::channel(());
    let _origin = origin_http2(&bed)?
        .frames(move |mut frames| {
            let (reset, mut widened) = (reset.clone(), widened.clone());
            async move {
                frames.greet_with_window(5).await?;
                let known = frames.request().await?;
                frames.answer(known, b"known").await?;
                let stream = frames.request().await?;
                frames.sent().await?;
                frames.answer(stream, b"enough").await?;
                widened.changed().await?;
                frames.widen(stream, 100).await?;
                // Nothing else comes before.
                reset.send(frames.reset_by_client().await? == (stream, code::CANCEL))?;
                frames.closed().await
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &[])?.success()?.text() == "known");
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.write_stdin((head + "5\r\nhello\r\n").as_bytes())?;
    client.wait_for_output("enough")?;
    client.write_stdin(b"5\r\nagain\r\n")?;
    thread::sleep(Duration::from_millis(200));
    widen.send(())?;
    thread::sleep(Duration::from_millis(200));
    // The connection may have ended by now.
    let _ = client.write_stdin(b"5\r\nworld\r\n0\r\n\r\n");
    ensure!(resets.recv_timeout(PATIENCE)?, "another stream, or another reason");
    Ok(())
}

/// A client's next request can be on its way while the last of the one before waits for its origin to take it.
#[test]
fn an_origin_gets_nothing_of_a_client_beyond_its_request() -> Result<()> {
    let bed = TestBed::new("http2-untaken")?;
    let (begun, begins) = std::sync::mpsc::channel();
    let (taken, takes) = std::sync::mpsc::channel();
    let (answer, answered) = watch::channel(());
    let _origin = origin_http2(&bed)?
        .frames(move |mut frames| {
            let (begun, taken, mut answered) = (begun.clone(), taken.clone(), answered.clone());
            async move {
                frames.greet_with_window(5).await?;
                let known = frames.request().await?;
                frames.answer(known, b"known").await?;
                let first = frames.request().await?;
                let (_, mut of_first, _) = frames.sent().await?;
                begun.send(())?;
                answered.changed().await?;
                // Nobody asks for more than the length says, though this is not the end.
                frames.head(first, &[("content-length", "2")]).await?;
                frames.data(first, b"ok").await?;
                let second = frames.request().await?;
                let mut of_second = Vec::new();
                frames.widen(first, 100).await?;
                frames.widen(second, 100).await?;
                let mut ended = 0;
                while ended < 2 {
                    let (stream, content, last) = frames.sent().await?;
                    if stream == first { &mut of_first } else { &mut of_second }.extend(content);
                    ended += i32::from(last);
                }
                taken.send((String::from_utf8(of_first)?, String::from_utf8(of_second)?))?;
                frames.answer(second, b"done").await?;
                frames.closed().await
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &[])?.success()?.text() == "known");
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    let request = |path: &str, content: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\n{content}")
    };
    client.write_stdin(request("/first", "hello").as_bytes())?;
    begins.recv_timeout(PATIENCE)?;
    client.write_stdin(b"world")?;
    // It waits for room then.
    thread::sleep(Duration::from_millis(500));
    answer.send(())?;
    client.wait_for_output("ok")?;
    client.write_stdin(request("/second", "secon").as_bytes())?;
    // The first is given room while the second is on its way.
    thread::sleep(Duration::from_millis(500));
    client.write_stdin(b"d one")?;
    let taken = takes.recv_timeout(PATIENCE)?;
    ensure!(taken == ("helloworld".to_owned(), "second one".to_owned()), "{taken:?}");
    client.wait_for_output("done")?;
    Ok(())
}

#[test]
fn a_client_that_leaves_resets_its_stream_and_nobody_elses() -> Result<()> {
    let bed = TestBed::new("http2-leaves")?;
    let (left, leaves) = std::sync::mpsc::channel();
    let _origin = origin_http2(&bed)?
        .frames(move |mut frames| {
            let left = left.clone();
            async move {
                frames.greet(100).await?;
                let stream = frames.request().await?;
                frames.head(stream, &[]).await?;
                // That it has gone is noticed when there is something to send to it.
                let reset = loop {
                    frames.data(stream, b"more").await?;
                    if let Ok(reset) = timeout(Duration::from_millis(5), frames.reset_by_client()).await {
                        break reset?;
                    }
                };
                left.send(reset == (stream, code::CANCEL))?;
                let next = frames.request().await?;
                frames.answer(next, b"next").await?;
                frames.closed().await
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let mut client = bed.client_command("curl")?.args(["-q", "-sSN", URL]).spawn()?;
    client.wait_for_output("more")?;
    client.kill();
    ensure!(leaves.recv_timeout(PATIENCE).context("the stream stays open")?);
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "aborted");
    ensure!(curl(&bed, &[])?.success()?.text() == "next");
    Ok(())
}

#[test]
fn a_client_that_asks_before_it_sends_is_told_to_go_on() -> Result<()> {
    let bed = TestBed::new("http2-continue")?;
    let origin = origin_http2(&bed)?.handler(|request| Reply::ok(request.body.len().to_string())).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let result = bed.curl(URL)?.header("Expect: 100-continue").args(["-v"]).body("hello".repeat(1000)).run()?;
    ensure!(result.statuses() == [100, 200] && result.body == b"5000", "{result:?}");
    ensure!(!result.stderr.contains("Done waiting for 100-continue"), "{result:?}");
    origin.only_request().map(drop)
}

#[test]
fn a_hundred_megabytes_stream_both_ways_through_a_small_agent() -> Result<()> {
    const SIZE: usize = 100 * 1000 * 1000;
    let bed = TestBed::new("http2-large")?;
    let content: Vec<u8> = (0..SIZE).map(|at| b'a' + (at / 4099 % 26) as u8).collect();
    let (answer, expected) = (bytes::Bytes::from(content.clone()), content.clone());
    let _origin = origin_http2(&bed)?
        .handler(move |request| match request.method.as_str() {
            "GET" => Reply::status(200, &[], answer.clone()),
            _ => Reply::ok((request.body == expected).to_string()),
        })
        .start()?;
    let config = configure(&bed)?;
    let mut agent = agent_with_one_worker(&bed, &config)?;
    let before = peak_memory(&mut agent)?;
    let response = bed.curl(URL)?.response()?;
    ensure!(response.body == content, "{} bytes of another content", response.body.len());
    let file = bed.dir().join("body");
    fs::write(&file, &content)?;
    for coding in ["X-A: 1", "Transfer-Encoding: chunked"] {
        let output = curl(&bed, &["-H", coding, "-H", "Expect:", "-T", &file.display().to_string()])?.success()?;
        ensure!(output.text() == "true", "{coding}: {output:?}");
    }
    let records = agent.wait_for_records(3)?;
    ensure!(records[0].text("sent") == SIZE.to_string() && records[1].text("received") == SIZE.to_string());
    let growth = peak_memory(&mut agent)?.saturating_sub(before);
    ensure!(growth < 16 << 20, "the agent grew by {} KiB", growth / 1024);
    Ok(())
}

#[test]
fn a_response_whose_length_has_come_holds_no_other_up() -> Result<()> {
    let bed = TestBed::new("http2-no-end")?;
    let origin = origin_http2(&bed)?
        .frames(move |mut frames| async move {
            frames.greet(100).await?;
            // It does not say that this is all.
            let stream = frames.request().await?;
            frames.head(stream, &[("content-length", "5")]).await?;
            frames.data(stream, b"hello").await?;
            let stream = frames.request().await?;
            frames.answer(stream, b"fine").await?;
            frames.closed().await
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let request = "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n";
    let text = converse(&bed, request.repeat(2))?.text();
    ensure!(
        text.contains("\r\n\r\nhelloHTTP/1.1 200 ") && text.ends_with("\r\n\r\n4\r\nfine\r\n0\r\n\r\n"),
        "{text:?}"
    );
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    Ok(())
}
