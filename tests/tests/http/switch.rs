//! Requests that switch to another protocol, such as WebSocket.

use anyhow::{Context, Result, ensure};
use harness::{TestBed, origin::Reply};

use super::{CLIENT, HOST, agent_with_one_worker, configure, converse, curl, origin, origin_http2, origin_with_chat};

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

/// Where a connection is there on which the origin takes such.
#[test]
fn a_web_socket_can_share_a_connection_of_http2() -> Result<()> {
    let bed = TestBed::new("switch-http2")?;
    let origin = origin_http2(&bed)?
        .web_sockets()
        .handler(|request| match request.target.as_str() {
            "/chat" => Reply::Echo(AGREE.into()),
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
    let head: Vec<_> = head.lines().filter(|line| !line.starts_with("date: ")).collect();
    let expected = [
        "HTTP/1.1 101 Switching Protocols",
        "sec-websocket-protocol: chat",
        "upgrade: websocket",
        "connection: Upgrade",
        "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
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
    let other = ASK.replace("websocket", "other").replace("/chat", "/other");
    let output = converse(&bed, other)?.success()?;
    ensure!(output.text().starts_with("HTTP/1.1 200 "), "{output:?}");
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

/// An application that speaks HTTP/2 is not offered any (RFC 8441 section 3), and one that asks nevertheless is refused by its stream.
#[test]
fn a_client_of_http2_gets_no_web_socket() -> Result<()> {
    let bed = TestBed::new("switch-refused")?;
    let origin = origin_http2(&bed)?.web_sockets().handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let headers = |stream: u8, block: &[u8]| [&[0, 0, block.len() as u8, 1, 5, 0, 0, 0, stream], block].concat();
    // Fields as RFC 7541 has them: some with a name, or all, of its appendix A.
    let authority = [&[0x01, HOST.len() as u8], HOST.as_bytes()].concat();
    let connect = [b"\x02\x07CONNECT\0\x09:protocol\x09websocket\x86\x84", &authority[..]].concat();
    let get = [b"\x82\x86\x84", &authority[..]].concat();
    let begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&[begin, &headers(1, &connect)[..], &headers(3, &get)].concat())?;
    client.wait_for_output("fine")?;
    // RST_STREAM with PROTOCOL_ERROR.
    client.wait_for_output("\0\0\x04\x03\0\0\0\0\x01\0\0\0\x01")?;
    ensure!(origin.only_request()?.method == "GET");
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
