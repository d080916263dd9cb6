//! Clients that speak HTTP/2 in clear, knowing that it is understood.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Reply, script},
    process::Output,
    wait::PATIENCE,
};
use tokio::{sync::watch, time::sleep};

use super::{
    CLIENT, EMPTY, HOST, HTTP2_BEGINS, URL, agent_with_one_worker, configure, curl, frame, origin, origin_http2,
};

fn curl2(bed: &TestBed, arguments: &[&str]) -> Result<Output> {
    curl(bed, &[&["--http2-prior-knowledge", "-i"], arguments].concat())
}

#[test]
fn an_origin_of_http1_gets_a_request_of_http1() -> Result<()> {
    let bed = TestBed::new("prior-http1")?;
    let reply = "HTTP/1.1 201 Made it\r\nX-Odd:  1\r\nTransfer-Encoding: chunked\r\nKeep-Alive: 5\r\n\r\n\
                 5\r\nhello\r\n0\r\n\r\n";
    let origin = origin(&bed)?.handler(move |_| Reply::Raw(reply.into())).start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let fields = ["-A", "", "-H", "Accept:", "-H", "X-A: 1", "-H", "Cookie: a=1", "-H", "Cookie: b=2", "-H", "X-A: 2"];
    let output = curl2(&bed, &fields)?.success()?;
    ensure!(output.text() == "HTTP/2 201 \r\nx-odd: 1\r\n\r\nhello", "{output:?}");
    let request = origin.only_request()?;
    let head = String::from_utf8_lossy(&request.head).into_owned();
    let expected = "GET /politics HTTP/1.1\r\nHost: edition.cnn.com\r\nX-A: 1\r\nCookie: a=1; b=2\r\nX-A: 2\r\n\r\n";
    ensure!(head == expected, "{head}");
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("outcome") == "upgraded" && record.text("protocol") == "HTTP/1.1", "{record:?}");
    ensure!(["error", "cause", "retries"].iter().all(|absent| record.get(absent).is_none()), "{record:?}");
    tripwire.assert_silent()
}

#[test]
fn that_there_is_no_content_is_said_as_http1_says_it() -> Result<()> {
    let bed = TestBed::new("prior-empty")?;
    let origin = origin(&bed)?.handler(|_| Reply::Raw(EMPTY.into())).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    for (method, expected) in [("POST", Some("0")), ("PUT", Some("0")), ("GET", None), ("DELETE", None)] {
        curl2(&bed, &["-X", method])?.success()?;
        let request = origin.take_requests().pop().context("no request")?;
        ensure!(request.method == method && request.header("content-length") == expected, "{request:?}");
    }
    Ok(())
}

#[test]
fn bodies_of_any_framing_arrive_at_origins_of_both_versions() -> Result<()> {
    let bed = TestBed::new("prior-bodies")?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let file = bed.dir().join("body");
    fs::write(&file, "0123456789".repeat(100_000))?;
    let file = file.display().to_string();
    for origin in [origin(&bed)?, origin_http2(&bed)?] {
        let origin = origin.handler(|request| Reply::ok(request.body.clone())).start()?;
        let known = format!("@{file}");
        for (arguments, length) in [
            (vec!["--data-binary", known.as_str()], 1_000_000),
            // Without a length.
            (vec!["-T", file.as_str(), "-H", "Content-Length:"], 1_000_000),
            (vec!["-X", "POST"], 0),
            (vec!["--data-binary", "x"], 1),
        ] {
            let output = curl2(&bed, &arguments)?.success()?;
            ensure!(output.text().starts_with("HTTP/2 200 \r\n"), "{arguments:?}: {output:?}");
            let request = origin.take_requests().pop().expect("it was answered");
            ensure!(request.body.len() == length, "{arguments:?}: {} bytes", request.body.len());
            ensure!(output.stdout.ends_with(&request.body), "{arguments:?}");
        }
        let output = curl2(&bed, &["--head"])?.success()?;
        ensure!(output.text().starts_with("HTTP/2 200 \r\n") && output.text().ends_with("\r\n\r\n"), "{output:?}");
    }
    // An answer of our own has no content either.
    let output = curl2(&bed, &["--head"])?.success()?;
    ensure!(output.text().starts_with("HTTP/2 502 \r\n") && output.text().ends_with("\r\n\r\n"), "{output:?}");
    ensure!(output.text().contains("\r\ncontent-length: "), "{output:?}");
    Ok(())
}

#[test]
fn lengths_that_differ_are_refused() -> Result<()> {
    let bed = TestBed::new("prior-lengths")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    // POST, http, /, the authority, and two of content-length, as RFC 7541 has them by its appendix A.
    let authority = [&[0x01, HOST.len() as u8], HOST.as_bytes()].concat();
    let block = [b"\x83\x86\x84", &authority[..], b"\x0f\x0d\x015", b"\x0f\x0d\x016"].concat();
    let request = [HTTP2_BEGINS, &frame(1, 4, &block)[..], &frame(0, 1, b"hello")].concat();
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&request)?;
    // 400 (RFC 7541 appendix A).
    client.wait_for_bytes(b"\x01\x04\0\0\0\x01\x8c")?;
    client.wait_for_output("Content-Length is not one number")?;
    ensure!(origin.take_requests().is_empty());
    Ok(())
}

#[test]
fn names_that_http1_does_not_have_are_refused() -> Result<()> {
    let bed = TestBed::new("prior-names")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    // GET, http, /, the authority, and a field that is in no table, as RFC 7541 has them by its appendix A.
    let authority = [&[0x01, HOST.len() as u8], HOST.as_bytes()].concat();
    let block = [b"\x82\x86\x84", &authority[..], b"\x00\x03a\"b\x011"].concat();
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&[HTTP2_BEGINS, &frame(1, 5, &block)[..]].concat())?;
    client.wait_for_output("a header field is malformed")?;
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "refused" && origin.take_requests().is_empty());
    Ok(())
}

/// GET of a path, on a stream by its number, as RFC 7541 has the fields by its appendix A.
pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    let block = [b"\x82\x86\x04", &text(path)[..], b"\x01", &text(HOST)].concat();
    [&[0, 0, block.len() as u8, 1, 5], &stream.to_be_bytes()[..], &block[..]].concat()
}

#[test]
fn paths_arrive_as_they_were_sent() -> Result<()> {
    let bed = TestBed::new("prior-paths")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(HTTP2_BEGINS)?;
    let paths =
        ["/", "/a/./b/../c?d&&e=%20", "/a<b>`c\\d?\"{}^", "/caf\u{e9}", "/a#fragment?b#c", "//double//slashes/"];
    for (done, path) in paths.into_iter().enumerate() {
        client.write_stdin(&get(1 + 2 * done as u32, path))?;
        agent.wait_for_records(done + 1)?;
        let request = origin.take_requests().pop().with_context(|| format!("{path} did not arrive"))?;
        ensure!(request.head.starts_with(format!("GET {path} HTTP/1.1\r\n").as_bytes()), "{path}: {request:?}");
    }
    Ok(())
}

/// The last of a response can wait for its client when its connection already serves another request.
#[test]
fn what_waits_for_a_client_ends_where_its_own_response_does() -> Result<()> {
    let bed = TestBed::new("prior-waits")?;
    let (rest, awaited) = watch::channel(());
    let origin = origin(&bed)?
        .scripts(move |request| {
            let mut awaited = awaited.clone();
            (request.target == "/first").then(|| {
                script(|mut wire| async move {
                    wire.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\naaaaaaaaaa").await?;
                    sleep(Duration::from_millis(200)).await;
                    wire.write(b"bbbbbbbbbb").await?;
                    ensure!(wire.read().await?.starts_with(b"GET /second "), "another request was awaited");
                    wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nccccc\r\n").await?;
                    awaited.changed().await?;
                    wire.write(b"5\r\nddddd\r\n0\r\n\r\n").await
                })
            })
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    // SETTINGS_INITIAL_WINDOW_SIZE is 10: the client takes no more of each response for now.
    let (preface, _) = HTTP2_BEGINS.split_at(HTTP2_BEGINS.len() - 9);
    let begin = [preface, b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\x0a", &get(1, "/first")].concat();
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&begin)?;
    client.wait_for_bytes(&frame(0, 0, b"aaaaaaaaaa"))?;
    // The rest has come when the origin is ready for the next request.
    thread::sleep(Duration::from_secs(1));
    client.write_stdin(&get(3, "/second"))?;
    client.wait_for_bytes(b"\0\0\x05\0\0\0\0\0\x03ccccc")?;
    // WINDOW_UPDATE
    client.write_stdin(&frame(8, 0, &[0, 0, 0, 100]))?;
    client.wait_for_bytes(&frame(0, 1, b"bbbbbbbbbb"))?;
    rest.send(())?;
    client.wait_for_bytes(b"\0\0\x05\0\0\0\0\0\x03ddddd")?;
    let records = agent.wait_for_records(2)?;
    ensure!(
        records.iter().all(|record| record.text("sent") != "30" && record.text("outcome") == "upgraded"),
        "{records:?}"
    );
    ensure!(origin.connections() == 1, "they were not on one connection");
    Ok(())
}

#[test]
fn interim_responses_come_first() -> Result<()> {
    let bed = TestBed::new("prior-interim")?;
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
                  HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let _origin = origin(&bed)?.handler(move |_| Reply::Raw(answer.into())).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = curl2(&bed, &[])?.success()?;
    let hints = "HTTP/2 103 \r\nlink: </a.css>; rel=preload\r\n\r\n";
    ensure!(output.text() == format!("{hints}HTTP/2 200 \r\ncontent-length: 2\r\n\r\nok"), "{output:?}");
    Ok(())
}

#[test]
fn what_breaks_off_does_not_look_complete() -> Result<()> {
    let bed = TestBed::new("prior-truncated")?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
    let _origin = origin(&bed)?.handler(move |_| Reply::RawThenClose(half.into())).start()?;
    let output = curl2(&bed, &[])?;
    // CURLE_HTTP2_STREAM
    ensure!(output.code() == 92, "{output:?}");
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "truncated");
    Ok(())
}

/// The origin answers before it has read the request, and more than the client has room for.
#[test]
fn a_client_may_send_all_of_its_request_before_it_takes_the_response() -> Result<()> {
    const LENGTH: usize = 4 << 20;
    let bed = TestBed::new("prior-early")?;
    let origin = origin(&bed)?
        .scripts(|_| {
            Some(script(|mut wire| async move {
                wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes()).await?;
                let (first, rest) = (LENGTH / 8, LENGTH / 8 * 7);
                wire.write(&vec![b'x'; first]).await?;
                // To the end of its last chunk: to close with something unread resets the connection, and what of the
                // response is still on its way would be lost.
                let mut received = Vec::new();
                while !received.ends_with(b"\r\n0\r\n\r\n") {
                    let bytes = wire.read().await?;
                    ensure!(!bytes.is_empty(), "the content ends after {} bytes", received.len());
                    received.extend(bytes);
                }
                wire.write(&vec![b'x'; rest]).await?;
                wire.shutdown().await
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let arguments = ["post", &bed.sockets(HOST, 80)[0].to_string(), "--length", &LENGTH.to_string()];
    let output = bed.client_command(CLIENT)?.args(arguments).patience(PATIENCE).run()?.success()?;
    ensure!(output.text() == format!("answered\n200 {LENGTH}\n"), "{output:?}");
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("outcome") == "upgraded" && record.text("protocol") == "HTTP/1.1", "{record:?}");
    ensure!(record.text("received") == LENGTH.to_string() && origin.failures().is_empty(), "{record:?}");
    Ok(())
}

/// Clients queue one more silently, as long as those that there are do not end.
#[test]
fn many_requests_that_do_not_end_have_room_on_one_connection() -> Result<()> {
    const COUNT: usize = 300;
    let bed = TestBed::new("prior-many")?;
    let (release, released) = watch::channel(false);
    let held = origin_http2(&bed)?.handler(move |_| Reply::Later(released.clone(), Box::new(Reply::ok("fine"))));
    let origin = held.start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    let requests = (0..COUNT as u32).flat_map(|at| get(1 + 2 * at, "/"));
    client.write_stdin(&HTTP2_BEGINS.iter().copied().chain(requests).collect::<Vec<_>>())?;
    // SETTINGS_MAX_CONCURRENT_STREAMS
    client.wait_for_bytes(b"\0\x03\0\0\x04\0")?;
    origin.wait_for_requests(COUNT)?;
    release.send_replace(true);
    let records = agent.wait_for_records(COUNT)?;
    ensure!(records.iter().all(|record| record.text("outcome") == "upgraded"), "{records:?}");
    Ok(())
}

#[test]
fn requests_of_nobody_are_refused() -> Result<()> {
    let bed = TestBed::new("prior-refused")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = curl2(&bed, &["-H", "Host: two words"])?;
    ensure!(output.text().starts_with("HTTP/2 400 ") && output.text().contains("not a host name"), "{output:?}");
    // Such a CONNECT has a path, which makes it none (RFC 9113 section 8.5).
    let output = curl2(&bed, &["-X", "CONNECT"])?;
    ensure!(output.code() == 92 && output.text().is_empty(), "{output:?}");
    // HTTP/2 is for those who begin with it.
    let later = [b"GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n", HTTP2_BEGINS].concat();
    let output = super::converse(&bed, later)?;
    ensure!(output.text().matches("HTTP/1.1 ").count() == 2 && output.text().contains("HTTP/1.1 400 "), "{output:?}");
    ensure!(origin.take_requests().len() == 1);
    // Half of its beginning is nothing.
    let output = super::converse(&bed, &HTTP2_BEGINS[..20])?;
    ensure!(!output.text().contains("200"), "{output:?}");
    let output =
        bed.client_command("curl")?.args(["-q", "-sS", "--max-time", "15", "--http2-prior-knowledge", URL]).run()?;
    ensure!(output.text() == "fine", "{output:?}");
    Ok(())
}

/// Tunnels to wherever an application likes are nobody's business here.
#[test]
fn no_tunnel_is_made() -> Result<()> {
    let bed = TestBed::new("prior-connect")?;
    let origin = origin(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    let block = [b"\x02\x07CONNECT\x01", &[HOST.len() as u8][..], HOST.as_bytes()].concat();
    client.write_stdin(&[HTTP2_BEGINS, &frame(1, 4, &block)[..]].concat())?;
    // A status that is in no table (RFC 7541 section 5.2).
    client.wait_for_bytes(b"\x03405")?;
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "refused" && origin.connections() == 0);
    tripwire.assert_silent()
}

#[test]
fn methods_that_nobody_knows_arrive() -> Result<()> {
    let bed = TestBed::new("prior-methods")?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    for origin in [origin(&bed)?, origin_http2(&bed)?] {
        let origin = origin.handler(|_| Reply::ok("fine")).start()?;
        for method in ["FROBNICATE", "M-SEARCH", "get"] {
            let output = curl2(&bed, &["-X", method])?.success()?;
            ensure!(output.text().starts_with("HTTP/2 200 "), "{method}: {output:?}");
            ensure!(origin.take_requests().pop().context("no request")?.method == method);
        }
    }
    Ok(())
}

/// Proxies write it anew, in another way.
#[test]
fn a_host_that_is_the_authority_s_is_the_same_one() -> Result<()> {
    let bed = TestBed::new("prior-hosts")?;
    let origin = origin(&bed)?.handler(|_| Reply::Raw(EMPTY.into())).start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    // PRIORITY, of which nobody takes notice, how long it may be: its stream has not begun.
    client.write_stdin(&[HTTP2_BEGINS, &frame(2, 0, b"\0\0\0\0")].concat())?;
    for (stream, host) in [(1, "Edition.CNN.com:80"), (3, "other.example"), (5, "edition.cnn.com:443")] {
        let mut head = get(stream, "/");
        let field = [b"\x00\x04host", &[host.len() as u8][..], host.as_bytes()].concat();
        head[2] += field.len() as u8;
        client.write_stdin(&[head, field].concat())?;
    }
    let statuses: Vec<_> = agent.wait_for_records(3)?.iter().map(|record| record.text("status")).collect();
    ensure!(statuses.iter().filter(|status| *status == "400").count() == 2, "{statuses:?}");
    let request = origin.only_request()?;
    ensure!(request.head == format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes(), "{request:?}");
    Ok(())
}

/// The end of the stream comes by itself, and says nothing new.
#[test]
fn a_request_that_announces_no_content_leaves_its_connection_to_others() -> Result<()> {
    let bed = TestBed::new("prior-announced")?;
    let origin = origin(&bed)?.handler(|_| Reply::Raw(EMPTY.into())).start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(HTTP2_BEGINS)?;
    for (done, stream) in [1, 3, 5].into_iter().enumerate() {
        // `content-length: 0`, by the place of its name (RFC 7541 appendix A).
        let mut head = get(stream, "/");
        let length = b"\x0f\x0d\x010";
        head[2] += length.len() as u8;
        // END_HEADERS alone
        head[4] = 4;
        head.extend(length);
        let mut end = frame(0, 1, b"");
        end[5..9].copy_from_slice(&stream.to_be_bytes());
        client.write_stdin(&[head, end].concat())?;
        agent.wait_for_records(done + 1)?;
    }
    let requests = origin.take_requests();
    ensure!(requests.iter().all(|request| request.header("content-length") == Some("0")), "{requests:?}");
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    Ok(())
}
