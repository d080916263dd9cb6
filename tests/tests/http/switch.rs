//! Requests that switch to another protocol, such as WebSocket.

use anyhow::{Result, ensure};
use harness::{TestBed, origin::Reply};

use super::{agent_with_one_worker, configure, converse, origin};

const ASK: &str = "GET /chat HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
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
