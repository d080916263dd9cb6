//! Requests that switch to another protocol, such as WebSocket.

use std::sync::mpsc;

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use harness::{
    TestBed,
    origin::{Origin, Reply, Request, code, script},
    wait::{PATIENCE, wait_until},
};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::{
    AGREED, CLIENT, HOST, agent_with_one_worker, ask_in_http2, configure, converse, curl, frame, origin, origin_http2,
    origin_with_chat,
};

pub(crate) const ASK: &str = "GET /chat HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
pub(crate) const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[test]
fn a_web_socket_goes_through_tls_both_ways() -> Result<()> {
    let bed = TestBed::new("switch")?;
    let origin = origin(&bed)?.handler(|_| Reply::Echo(AGREE.into())).start()?;
    let tripwire = bed.tripwire(&["edition.cnn.com"])?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let capture = bed.capture()?;
    // Frames are any bytes to us; those sent along with the request as well.
    let output = converse(&bed, format!("{ASK}\u{0}first frame\u{0}second frame"))?.success()?;
    ensure!(output.text().starts_with(AGREE), "{output:?}");
    ensure!(output.text().ends_with("\u{0}first frame\u{0}second frame"), "{output:?}");
    let request = origin.only_request()?;
    let head = String::from_utf8_lossy(&request.head).into_owned();
    ensure!(head == ASK.replace("keep-alive, Upgrade", "Upgrade"), "{head}");
    ensure!(!capture.stop()?.contains(b"frame"), "a frame was seen in clear");
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("outcome") == "upgraded" && record.text("status") == "101", "{record:?}");
    ensure!(record.text("received") == "25" && record.text("sent") == "25", "{record:?}");
    tripwire.assert_silent()
}

/// Where a connection is there on which the origin takes such.
#[test]
fn a_web_socket_can_share_a_connection_of_http2() -> Result<()> {
    let bed = TestBed::new("switch-http2")?;
    let origin = origin_http2(&bed)?
        .web_sockets()
        .handler(|request| match request.target.as_str() {
            "/chat" => Reply::Echo(AGREE.into()),
            "/other" => Reply::Echo(AGREE.replace("websocket", "other").into()),
            "/declined" => Reply::status(403, &[], "not you"),
            _ => Reply::ok("fine"),
        })
        .start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    // For the first request none is there, nor is another one made than what it can do with for sure.
    let output = converse(&bed, format!("{ASK}first frame"))?.success()?;
    ensure!(output.text().starts_with(AGREE) && output.text().ends_with("first frame"), "{output:?}");
    ensure!(origin.take_requests()[0].version == "HTTP/1.1");
    ensure!(curl(&bed, &[])?.success()?.text() == "fine");
    ensure!(origin.take_requests()[0].version == "HTTP/2");

    let ask = ASK.replace("\r\n\r\n", "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat, news\r\n\r\n");
    let content = "\0frame".repeat(500_000);
    let address = bed.sockets(HOST, 80)[0].to_string();
    let talk = |sent: String| bed.client_command(CLIENT)?.args(["talk", &address]).stdin(sent).run()?.success();
    let output = talk(format!("{ask}{content}"))?.text();
    let (head, back) = output.split_once("\r\n\r\n").context("half a head")?;
    let head: Vec<_> = head.lines().filter(|line| !line.starts_with("Date: ")).collect();
    let expected = [
        "HTTP/1.1 101 Switching Protocols",
        "Sec-WebSocket-Protocol: chat",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    ];
    ensure!(head == expected && back == content, "{head:?}: {} bytes", back.len());
    let request = origin.take_requests().pop().context("no request")?;
    ensure!(request.version == "HTTP/2" && request.method == "CONNECT" && request.target == "/chat", "{request:?}");
    let fields: Vec<_> = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected =
        [(":protocol", "websocket"), ("sec-websocket-version", "13"), ("sec-websocket-protocol", "chat, news")];
    ensure!(fields == expected && request.host == HOST, "{request:?}");
    let record = agent.wait_for_records(3)?.pop().context("no record")?;
    ensure!(record.text("protocol") == "HTTP/2" && record.text("status") == "101", "{record:?}");
    ensure!(record.text("outcome") == "upgraded" && record.text("method") == "GET", "{record:?}");
    ensure!(record.text("received") == content.len().to_string() && record.text("sent") == content.len().to_string());

    let output = converse(&bed, ask.replace("/chat", "/declined"))?.success()?;
    ensure!(output.text().starts_with("HTTP/1.1 403 ") && output.text().ends_with("not you"), "{output:?}");
    // What asks for something else has to do with HTTP/1.1, and whatever it comes to nobody else notices.
    let other = |head: &str| head.replace("websocket", "other").replace("/chat", "/other") + "first message";
    let output = converse(&bed, other(ASK))?.success()?;
    ensure!(output.text() == other(AGREE), "{output:?}");
    let versions: Vec<_> = origin.take_requests().into_iter().map(|request| request.version).collect();
    ensure!(versions == ["HTTP/2", "HTTP/1.1"], "{versions:?}");
    ensure!(curl(&bed, &[])?.success()?.text() == "fine");
    tripwire.assert_silent()
}

/// One that offers nothing of the kind speaks HTTP/1.1 for it.
#[test]
fn a_web_socket_goes_over_http1_where_http2_has_none() -> Result<()> {
    let bed = TestBed::new("switch-unoffered")?;
    let origin = origin_with_chat(&bed, AGREE)?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &[])?.success()?.text() == "fine");
    let output = converse(&bed, format!("{ASK}first frame"))?.success()?;
    ensure!(output.text().starts_with(AGREE) && output.text().ends_with("first frame"), "{output:?}");
    let versions: Vec<_> = origin.take_requests().into_iter().map(|request| request.version).collect();
    ensure!(versions == ["HTTP/2", "HTTP/1.1"], "{versions:?}");
    Ok(())
}

/// An application that speaks HTTP/2 is offered them (RFC 8441 section 3), whatever the origin speaks.
#[test]
fn a_client_of_http2_can_have_a_web_socket() -> Result<()> {
    for version in ["HTTP/1.1", "HTTP/2"] {
        let bed = TestBed::new("switch-prior")?;
        let answer = |request: &Request| match request.target.as_str() {
            // As RFC 6455 has it for any key.
            "/chat" if request.version == "HTTP/1.1" => Reply::Echo(agree_to(request).into()),
            "/chat" => Reply::Echo(Vec::new()),
            "/fake" => Reply::Echo(AGREE.into()),
            "/declined" => Reply::status(403, &[], "not you"),
            _ => Reply::ok("fine"),
        };
        let origin = if version == "HTTP/2" { origin_http2(&bed)?.web_sockets() } else { origin(&bed)? };
        let origin = origin.handler(answer).start()?;
        let tripwire = bed.tripwire(&[HOST])?;
        let config = configure(&bed)?;
        let agent = agent_with_one_worker(&bed, &config)?;
        ensure!(curl(&bed, &[])?.success()?.text() == "fine");
        origin.take_requests();
        let talk = |bytes: Vec<u8>| {
            let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
            client.write_stdin(&bytes)?;
            Ok::<_, anyhow::Error>(client)
        };
        let client = talk(ask_in_http2("websocket", "/chat"))?;
        client.wait_for_bytes(AGREED)?;
        // ENABLE_CONNECT_PROTOCOL
        client.wait_for_bytes(b"\0\x08\0\0\0\x01")?;
        client.write_stdin(&frame(0, 0, b"first frame"))?;
        client.wait_for_bytes(&frame(0, 0, b"first frame"))?;
        client.write_stdin(&frame(0, 1, b"last frame"))?;
        client.wait_for_bytes(b"last frame")?;
        // Its end comes back as well.
        client.wait_for_bytes(&frame(0, 1, b""))?;
        let request = origin.only_request()?;
        ensure!(request.version == version && request.target == "/chat", "{request:?}");
        ensure!(request.header("sec-websocket-version") == Some("13"), "{request:?}");
        let record = agent.wait_for_records(2)?.pop().context("no record")?;
        ensure!(record.text("status") == "101" && record.text("outcome") == "upgraded", "{record:?}");
        ensure!(record.text("received") == "21" && record.text("sent") == "21", "{record:?}");

        talk(ask_in_http2("websocket", "/declined"))?.wait_for_output("not you")?;
        if version == "HTTP/1.1" {
            // A page is none, though its status would say so: 502.
            talk(ask_in_http2("websocket", "/page"))?.wait_for_bytes(b"\x03502")?;
            let record = agent.wait_for_records(4)?.pop().context("no record")?;
            ensure!(record.text("status") == "502" && record.text("outcome") == "failed", "{record:?}");
            ensure!(
                record.text("error") == "a request for a WebSocket was answered with 200 rather than 101",
                "{record:?}"
            );
            // The connection goes on all the same.
            ensure!(curl(&bed, &[])?.success()?.text() == "fine");
            let requests = origin.take_requests();
            let [.., page, next] = &requests[..] else { bail!("{requests:?}") };
            ensure!(page.target == "/page" && next.connection == page.connection, "{requests:?}");
            // RST_STREAM with PROTOCOL_ERROR: no key is known beforehand.
            talk(ask_in_http2("websocket", "/fake"))?.wait_for_bytes(&frame(3, 0, &[0, 0, 0, 1]))?;
        }
        origin.take_requests();
        // 501; the origin hears nothing of it.
        talk(ask_in_http2("connect-udp", "/"))?.wait_for_bytes(b"\x03501")?;
        ensure!(origin.take_requests().is_empty());
        let record = agent.wait_for_records(if version == "HTTP/1.1" { 7 } else { 4 })?.pop().context("no record")?;
        ensure!(record.text("status") == "501" && record.text("outcome") == "refused", "{record:?}");
        tripwire.assert_silent()?;
    }
    Ok(())
}

/// One that has nothing more to say may wait for the origin, but not once it is gone.
#[test]
fn a_web_socket_of_http2_ends_with_its_client() -> Result<()> {
    let bed = TestBed::new("switch-gone")?;
    let (ended, ends) = mpsc::channel();
    let origin = origin(&bed)?.scripts(move |request| {
        let (agreement, ended) = (agree_to(request), ended.clone());
        Some(script(move |mut wire| async move {
            wire.write(agreement.as_bytes()).await?;
            while !wire.read().await?.is_empty() {}
            ended.send(())?;
            // It has nothing to say for ever.
            std::future::pending().await
        }))
    });
    let _origin = origin.start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let mut client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&ask_in_http2("websocket", "/chat"))?;
    client.wait_for_bytes(AGREED)?;
    client.write_stdin(&frame(0, 1, b"last frame"))?;
    ends.recv_timeout(PATIENCE).context("the origin is not told of the end")?;
    ensure!(agent.records().is_empty());
    client.kill();
    let record = agent.wait_for_records(1)?.pop().context("no record")?;
    ensure!(record.text("received") == "10" && record.text("outcome") == "aborted", "{record:?}");
    Ok(())
}

/// The head by which a server agrees to the key of a request.
pub(crate) fn agree_to(request: &Request) -> String {
    let key = request.header("sec-websocket-key").unwrap_or_default();
    let seed = [key.as_bytes(), b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    let proof = BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &seed));
    AGREE.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &proof)
}

/// An origin that agrees to a WebSocket and says the first of these, and once it is told to says the last and closes without the
/// goodbye of TLS, as many do. It tells when it has closed.
fn curt(bed: &TestBed, said: [Vec<u8>; 2], told: watch::Receiver<bool>, closed: mpsc::Sender<()>) -> Result<Origin> {
    let scripts = move |request: &Request| {
        let (head, [first, last], closed, mut told) = (agree_to(request), said.clone(), closed.clone(), told.clone());
        Some(script(move |mut wire| async move {
            wire.write(&[head.as_bytes(), &first].concat()).await?;
            told.wait_for(|told| *told).await?;
            wire.write(&last).await?;
            drop(wire);
            Ok(closed.send(())?)
        }))
    };
    origin(bed)?.scripts(scripts).start()
}

/// It was said nevertheless, and the client can read more slowly than it comes.
#[test]
fn a_web_socket_whose_origin_just_closes_is_reset_once_the_client_has_all() -> Result<()> {
    let bed = TestBed::new("switch-curt")?;
    let content = "\0frame".repeat(60_000);
    let ((tell, told), (closed, closes)) = (watch::channel(false), mpsc::channel());
    let _origin = curt(&bed, [Vec::new(), content.clone().into()], told, closed)?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let mut client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(ASK.as_bytes())?;
    client.wait_for_output("HTTP/1.1 101 ")?;
    client.signal(Signal::SIGSTOP)?;
    tell.send_replace(true);
    closes.recv_timeout(PATIENCE).context("the origin does not get rid of it")?;
    // The kernel has what the client has not taken.
    let record = agent.wait_for_records(1)?.pop().context("no record")?;
    client.signal(Signal::SIGCONT)?;
    ensure!(!client.wait(PATIENCE)?.success(), "what broke off looks complete");
    let output = client.stdout();
    let (_, said) = output.split_once("\r\n\r\n").context("half a head")?;
    ensure!(said == content, "{} of {} bytes came", said.len(), content.len());
    ensure!(record.text("outcome") == "truncated" && record.text("error").contains("close_notify"), "{record:?}");
    ensure!(record.text("sent") == content.len().to_string(), "{record:?}");
    Ok(())
}

/// Though there was no room for it when the origin closed.
#[test]
fn a_web_socket_of_http2_whose_origin_just_closes_is_reset_once_the_client_has_all() -> Result<()> {
    // What there is room for to begin with (RFC 9113 section 6.9.2).
    const ROOM: usize = 65_535;
    // What is copied at once is no whole part of the rest, so that the end is seen while there is no room.
    const FIRST: usize = 6000;
    let bed = TestBed::new("switch-curt-http2")?;
    let last = [vec![b'~'; ROOM - FIRST], vec![b'^'; 5000]].concat();
    let ((tell, told), (closed, closes)) = (watch::channel(false), mpsc::channel());
    let _origin = curt(&bed, [vec![b'~'; FIRST], last], told, closed)?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&ask_in_http2("websocket", "/chat"))?;
    let has = |byte, count| client.stdout().matches(byte).count() >= count;
    wait_until("what is said first", PATIENCE, || has('~', FIRST))?;
    tell.send_replace(true);
    closes.recv_timeout(PATIENCE).context("the origin does not get rid of it")?;
    wait_until("what there is room for", PATIENCE, || has('~', ROOM))?;
    // WINDOW_UPDATE of the connection, and of the stream.
    client.write_stdin(b"\0\0\x04\x08\0\0\0\0\0\0\x01\0\0")?;
    client.write_stdin(&frame(8, 0, &[0, 1, 0, 0]))?;
    wait_until("the rest", PATIENCE, || has('^', 5000))?;
    // RST_STREAM
    client.wait_for_bytes(b"\0\0\x04\x03\0\0\0\0\x01")
}

/// What breaks off breaks off for the client, too, rather than to end in order.
#[test]
fn a_web_socket_that_is_cancelled_is_reset() -> Result<()> {
    let bed = TestBed::new("switch-cancelled")?;
    let _origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet_other_protocols().await?;
            let first = frames.request().await?;
            frames.answer(first, b"fine").await?;
            let stream = frames.request().await?;
            frames.head(stream, &[]).await?;
            frames.data(stream, b"not all of it").await?;
            frames.reset(stream, code::CANCEL).await?;
            frames.closed().await
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &[])?.success()?.text() == "fine");
    let address = bed.sockets(HOST, 80)[0].to_string();
    let output = bed.client_command(CLIENT)?.args(["raw", &address]).stdin(ASK).run()?;
    ensure!(output.text().starts_with("HTTP/1.1 101 "), "{output:?}");
    ensure!(output.code() != 0 && output.stderr.contains("reset"), "{output:?}");
    let record = agent.wait_for_records(2)?.pop().context("no record")?;
    ensure!(record.text("outcome") == "truncated" && record.text("sent") == "13", "{record:?}");
    Ok(())
}

#[test]
fn an_origin_may_decline_and_may_not_switch_unasked() -> Result<()> {
    let bed = TestBed::new("decline")?;
    let decline = "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n";
    let origin = origin(&bed)?
        .handler(move |request| match request.target.as_str() {
            "/unasked" => Reply::Raw(AGREE.into()),
            _ => Reply::Raw(decline.into()),
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = converse(&bed, ASK)?.success()?;
    ensure!(output.text() == decline, "{output:?}");
    let output = converse(&bed, "GET /unasked HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n")?.success()?;
    ensure!(output.text().starts_with("HTTP/1.1 502 "), "{output:?}");
    ensure!(output.text().contains("error=http_protocol_error"), "{output:?}");
    origin.wait_for_requests(2)?;
    Ok(())
}

/// What the client sends next would be content of its request, and for the origin already the other protocol.
#[test]
fn an_origin_may_not_switch_before_it_has_the_whole_request() -> Result<()> {
    let bed = TestBed::new("switch-early")?;
    let origin = origin(&bed)?
        .scripts(|request| {
            (request.method == "POST").then(|| {
                script(|mut wire| async move {
                    wire.write(AGREE.as_bytes()).await?;
                    ensure!(wire.read().await?.is_empty(), "more came after the switch");
                    Ok(())
                })
            })
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let ask = ASK.replace("GET", "POST").replace("\r\n\r\n", "\r\nContent-Length: 20\r\n\r\n");
    let address = bed.sockets(HOST, 80)[0].to_string();
    let client = bed.client_command(CLIENT)?.args(["talk", &address]).spawn()?;
    client.write_stdin(ask.as_bytes())?;
    client.wait_for_output("HTTP/1.1 502 ")?;
    let record = agent.wait_for_records(1)?.pop().context("no record")?;
    let error = record.text("error");
    ensure!(error.contains("switched to another protocol before it had all of the request"), "{record:?}");
    origin.wait_for_requests(1)?;
    Ok(())
}
