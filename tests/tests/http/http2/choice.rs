//! Which protocol an origin and a request agree on.

use super::*;

/// What WebSocket clients send, and what servers answer.
const ASK: &str = "GET /chat HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

#[test]
fn a_web_socket_has_a_connection_of_its_own_where_http2_would_be_picked() -> Result<()> {
    let bed = TestBed::new("http2-websocket")?;
    let origin = origin_with_chat(&bed, AGREE)?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let mut versions = Vec::new();
    for _ in 0..2 {
        let output = converse(&bed, format!("{ASK}\u{0}frame"))?.success()?;
        ensure!(output.text() == format!("{AGREE}\u{0}frame"), "{output:?}");
        ensure!(curl(&bed, &[])?.success()?.text() == "fine");
        versions.extend(origin.take_requests().into_iter().map(|request| (request.version, request.connection)));
    }
    let expected = [("HTTP/1.1", 0), ("HTTP/2", 1), ("HTTP/1.1", 2), ("HTTP/2", 1)];
    ensure!(versions.iter().map(|(version, connection)| (version.as_str(), *connection)).eq(expected), "{versions:?}");
    let protocols: Vec<_> = agent.wait_for_records(4)?.iter().map(|record| record.text("protocol")).collect();
    ensure!(protocols == ["HTTP/1.1", "HTTP/2", "HTTP/1.1", "HTTP/2"], "{protocols:?}");
    Ok(())
}

/// Be it for one request, or as it ends the connection.
#[test]
fn an_origin_that_asks_for_http1_gets_it_from_then_on() -> Result<()> {
    for (name, is_goodbye) in [("http2-required", false), ("http2-goodbye-http1", true)] {
        let bed = TestBed::new(name)?;
        let origin = origin_http2(&bed)?
            .handler(|_| Reply::Raw(EMPTY.into()))
            .frames(move |mut frames| async move {
                frames.greet(100).await?;
                let stream = frames.request().await?;
                if is_goodbye {
                    frames.go_away(0, code::HTTP_1_1_REQUIRED).await?;
                } else {
                    frames.reset(stream, code::HTTP_1_1_REQUIRED).await?;
                }
                frames.closed().await
            })
            .start()?;
        let config = configure(&bed)?;
        let agent = agent_with_one_worker(&bed, &config)?;
        for _ in 0..3 {
            curl(&bed, &["-d", "amount=100"])?.success()?;
        }
        let requests = origin.wait_for_requests(3)?;
        ensure!(requests.iter().all(|request| request.version == "HTTP/1.1" && request.body == b"amount=100"));
        ensure!(origin.connections() == 2, "{name}: {} connections", origin.connections());
        ensure!(agent.wait_for_records(3)?.iter().all(|record| record.text("protocol") == "HTTP/1.1"));
    }
    Ok(())
}

#[test]
fn a_request_that_http2_is_refused_takes_http2_from_nobody_else() -> Result<()> {
    let bed = TestBed::new("http2-required-once")?;
    let origin = origin_http2(&bed)?
        .handler(|_| Reply::Raw(EMPTY.into()))
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            let first = frames.request().await?;
            frames.answer(first, b"fine").await?;
            let second = frames.request().await?;
            frames.reset(second, code::HTTP_1_1_REQUIRED).await?;
            let third = frames.request().await?;
            frames.answer(third, b"fine").await?;
            frames.closed().await
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    for _ in 0..3 {
        curl(&bed, &[])?.success()?;
    }
    ensure!(origin.connections() == 2, "{} connections", origin.connections());
    let protocols: Vec<_> = agent.wait_for_records(3)?.iter().map(|record| record.text("protocol")).collect();
    ensure!(protocols == ["HTTP/2", "HTTP/1.1", "HTTP/2"], "{protocols:?}");
    Ok(())
}

/// It says that it takes WebSockets, and does not take this one: then there is HTTP/1.1.
#[test]
fn a_web_socket_that_http2_is_refused_goes_by_http1() -> Result<()> {
    let bed = TestBed::new("http2-websocket-required")?;
    let origin = origin_http2(&bed)?
        .handler(|_| Reply::Echo(AGREE.into()))
        .frames(|mut frames| async move {
            frames.greet_other_protocols().await?;
            let first = frames.request().await?;
            frames.answer(first, b"fine").await?;
            let second = frames.request().await?;
            frames.reset(second, code::HTTP_1_1_REQUIRED).await?;
            frames.closed().await
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &[])?.success()?.text() == "fine");
    let ask =
        ASK.replace("\r\n\r\n", "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n");
    let output = converse(&bed, format!("{ask}\u{0}frame"))?.success()?;
    ensure!(output.text() == format!("{AGREE}\u{0}frame"), "{output:?}");
    ensure!(origin.connections() == 2, "{} connections", origin.connections());
    let protocols: Vec<_> = agent.wait_for_records(2)?.iter().map(|record| record.text("protocol")).collect();
    ensure!(protocols == ["HTTP/2", "HTTP/1.1"], "{protocols:?}");
    Ok(())
}

#[test]
fn an_origin_that_speaks_http2_alone_is_served_too() -> Result<()> {
    let bed = TestBed::new("http2-only")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).alpn(&["h2"]);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &[])?.success()?.text() == "fine");
    // For what only HTTP/1.1 can do there is nothing that both speak.
    let output = converse(&bed, ASK)?;
    ensure!(output.text().starts_with("HTTP/1.1 502 "), "{output:?}");
    ensure!(output.text().contains("error=tls_alert_received"), "{output:?}");
    origin.only_request().map(drop)
}
