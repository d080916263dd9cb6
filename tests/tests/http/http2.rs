//! Origins that pick HTTP/2, which applications know nothing of.

mod choice;
mod flow;
mod goodbye;
mod windows;

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Frames, Reply, ServerTls, code},
    wait::PATIENCE,
};
use tokio::{sync::watch, time::timeout};

use super::{
    CLIENT, EMPTY, HOST, URL, agent_with_one_worker, configure, converse, curl, large::peak_memory, origin_http2,
    origin_with_chat,
};

type Fields = &'static [(&'static str, &'static str)];

#[test]
fn a_request_says_in_http2_what_it_says_in_http1() -> Result<()> {
    let bed = TestBed::new("http2-heads")?;
    let origin = origin_http2(&bed)?.handler(|_| Reply::ok("fine")).start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    // Sent: method, target, host and fields. Seen: target, authority and fields.
    let cases: [(&str, &str, &str, &str, Fields); 7] = [
        ("GET /politics", "edition.cnn.com", "/politics", HOST, &[]),
        (
            "GET /a/../b//c?d=%7E&&e=1|2",
            "Edition.CNN.com:80\r\nX-oDD: 1\r\nCookie: a=1; b=2\r\nX-Twice: 1\r\nX-Other: 3\r\nX-Twice: 2",
            "/a/../b//c?d=%7E&&e=1|2",
            "Edition.CNN.com:80",
            &[("x-odd", "1"), ("cookie", "a=1; b=2"), ("x-twice", "1"), ("x-twice", "2"), ("x-other", "3")],
        ),
        // What concerns our connection with the application, and the order of the rest.
        (
            "GET /",
            "edition.cnn.com\r\nX-A: 1\r\nConnection: keep-alive, X-Drop\r\nKeep-Alive: 5\r\nX-Drop: 1\r\nX-B: 2\r\nX-C: 3",
            "/",
            HOST,
            &[("x-a", "1"), ("x-b", "2"), ("x-c", "3")],
        ),
        ("GET /", "edition.cnn.com\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2, h2c", "/", HOST, &[]),
        ("GET /", "edition.cnn.com\r\nConnection: TE\r\nTE: deflate, trailers", "/", HOST, &[("te", "trailers")]),
        ("OPTIONS *", "edition.cnn.com", "*", HOST, &[]),
        ("PROPFIND http://edition.cnn.com/x", "other.example", "/x", HOST, &[]),
    ];
    for (done, (line, host, target, authority, fields)) in cases.iter().enumerate() {
        let output = converse(&bed, format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n"))?;
        ensure!(output.text().starts_with("HTTP/1.1 200 OK\r\n") && output.text().ends_with("fine"), "{output:?}");
        let seen = origin.take_requests().pop().context("nothing came of it")?;
        let expected: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ensure!(seen.version == "HTTP/2" && seen.target == *target && seen.host == *authority, "{line}: {seen:?}");
        ensure!(seen.headers == expected && line.starts_with(&seen.method), "{line}: {seen:?}");
        let record = agent.wait_for_records(done + 1)?.pop().context("no record")?;
        ensure!(record.text("protocol") == "HTTP/2" && record.text("outcome") == "upgraded", "{record:?}");
    }
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    tripwire.assert_silent()
}

#[test]
fn bodies_of_requests_arrive_however_they_are_framed() -> Result<()> {
    let bed = TestBed::new("http2-bodies")?;
    let origin = origin_http2(&bed)?.handler(|request| Reply::ok(request.body.len().to_string())).start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let long = "x".repeat(300_000);
    let cases = [
        ("POST", "Content-Length: 5\r\n", "hello".to_owned(), "hello"),
        ("PUT", "Content-Length: 300000\r\n", long.clone(), long.as_str()),
        ("POST", "Content-Length: 0\r\n", String::new(), ""),
        ("POST", "", String::new(), ""),
        ("GET", "Content-Length: 5\r\n", "hello".to_owned(), "hello"),
        ("POST", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n".to_owned(), "hello"),
        ("POST", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n".to_owned(), ""),
        (
            "POST",
            "Transfer-Encoding: chunked\r\nTrailer: X-Check\r\n",
            "2\r\nhi\r\n0\r\nX-Check: 5\r\n\r\n".to_owned(),
            "hi",
        ),
        (
            "POST",
            "Transfer-Encoding: chunked\r\nTrailer: X-Check\r\n",
            // HTTP/2 has no such field.
            "2\r\nhi\r\n0\r\nKeep-Alive: 5\r\nX-Check: 5\r\n\r\n".to_owned(),
            "hi",
        ),
    ];
    for (done, (method, framing, framed, body)) in cases.iter().enumerate() {
        let output = converse(&bed, format!("{method} / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n{framed}"))?;
        ensure!(output.text().ends_with(&format!("\r\n\r\n{}", body.len())), "{framing}: {output:?}");
        let seen = origin.take_requests().pop().context("no request")?;
        ensure!(seen.body == body.as_bytes() && seen.method == *method, "{framing}: {} bytes", seen.body.len());
        ensure!(seen.header("transfer-encoding").is_none(), "{seen:?}");
        let length = framing.strip_prefix("Content-Length: ").map(str::trim);
        ensure!(length.is_none() || seen.header("content-length") == length, "{framing}: {seen:?}");
        let trailers: &[_] = if framing.contains("Trailer") { &[("x-check".into(), "5".into())] } else { &[] };
        ensure!(seen.trailers == trailers, "{seen:?}");
        let record = agent.wait_for_records(done + 1)?.pop().context("no record")?;
        ensure!(record.text("received") == body.len().to_string(), "{record:?}");
    }
    Ok(())
}

/// Serves one request on each connection by a conversation of frames, and gives what came to a client that sends `request`.
fn answer_of<F>(name: &str, request: &str, conversation: fn(Frames, u32) -> F) -> Result<(String, String)>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let bed = TestBed::new(name)?;
    let _origin = origin_http2(&bed)?
        .frames(move |mut frames| async move {
            frames.greet(100).await?;
            let stream = frames.request().await?;
            conversation(frames, stream).await
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    // Not closed by the client, so that it is the agent who closes.
    let address = bed.sockets(HOST, 80)[0].to_string();
    let output = bed.client_command(CLIENT)?.args(["raw", &address]).stdin(request).run()?;
    let record = agent.wait_for_records(1)?.pop().context("no record")?;
    Ok((output.text(), record.text("outcome")))
}

const GET: &str = "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: close\r\n\r\n";

#[test]
fn a_response_is_framed_as_its_client_understands_it() -> Result<()> {
    let sized = |mut frames: Frames, stream| async move {
        frames.head(stream, &[("x-a", "1"), ("content-length", "5")]).await?;
        frames.data(stream, b"hello").await?;
        frames.end(stream).await?;
        frames.closed().await
    };
    let unsized_ = |mut frames: Frames, stream| async move {
        frames.head(stream, &[("x-a", "1")]).await?;
        frames.data(stream, b"hello").await?;
        frames.end(stream).await?;
        frames.closed().await
    };
    let old = "GET / HTTP/1.0\r\nHost: edition.cnn.com\r\n\r\n";
    let (text, outcome) = answer_of("http2-sized", GET, sized)?;
    ensure!(text.starts_with("HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n") && text.ends_with("\r\n\r\nhello"));
    ensure!(outcome == "upgraded", "{outcome}");
    let (text, outcome) = answer_of("http2-chunked", GET, unsized_)?;
    ensure!(text.contains("\r\nTransfer-Encoding: chunked\r\n"), "{text:?}");
    ensure!(text.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n") && outcome == "upgraded", "{outcome}: {text:?}");
    let (text, outcome) = answer_of("http2-old-sized", old, sized)?;
    ensure!(text == "HTTP/1.0 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhello", "{text:?}");
    ensure!(outcome == "upgraded", "{outcome}");
    // The end of the connection is the end of the body.
    let (text, outcome) = answer_of("http2-old", old, unsized_)?;
    ensure!(text == "HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nhello" && outcome == "upgraded", "{outcome}: {text:?}");
    Ok(())
}

#[test]
fn lengths_that_differ_are_refused() -> Result<()> {
    let (text, outcome) = answer_of("http2-lengths", GET, |mut frames: Frames, stream| async move {
        frames.head(stream, &[("content-length", "5"), ("content-length", "6")]).await?;
        frames.data(stream, b"hello").await?;
        frames.end(stream).await?;
        frames.closed().await
    })?;
    ensure!(text.starts_with("HTTP/1.1 502 ") && text.contains("error=http_protocol_error"), "{text:?}");
    ensure!(outcome == "failed", "{outcome}");
    Ok(())
}

#[test]
fn names_that_http1_does_not_have_are_refused() -> Result<()> {
    let (text, outcome) = answer_of("http2-names", GET, |mut frames: Frames, stream| async move {
        frames.head(stream, &[("a\"b", "1")]).await?;
        frames.closed().await
    })?;
    ensure!(text.starts_with("HTTP/1.1 502 ") && text.contains("a header field is malformed"), "{text:?}");
    ensure!(outcome == "failed", "{outcome}");
    Ok(())
}

#[test]
fn interim_responses_come_first() -> Result<()> {
    let hints = |mut frames: Frames, stream| async move {
        frames.interim(stream, "100", &[]).await?;
        frames.interim(stream, "103", &[("link", "</a.css>; rel=preload")]).await?;
        frames.interim(stream, "103", &[("link", "</b.css>; rel=preload"), ("content-length", "5")]).await?;
        // Nor has HTTP/1.1 such a name.
        frames.interim(stream, "103", &[("a\"b", "1")]).await?;
        frames.head(stream, &[("content-length", "2")]).await?;
        frames.data(stream, b"ok").await?;
        frames.end(stream).await?;
        frames.closed().await
    };
    let hint = |name: &str| format!("HTTP/1.1 103 Early Hints\r\nLink: </{name}.css>; rel=preload\r\n\r\n");
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let expected = [&hint("a"), &hint("b"), answer].concat();
    let (text, outcome) = answer_of("http2-interim", GET, hints)?;
    ensure!(text == format!("HTTP/1.1 100 Continue\r\n\r\n{expected}") && outcome == "upgraded", "{text:?}");
    // One that waits is told to go on by us, and not told again.
    let waits = "PUT / HTTP/1.1\r\nHost: edition.cnn.com\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\
                 Connection: close\r\n\r\n";
    let (text, _) = answer_of("http2-continue", waits, hints)?;
    ensure!(text.matches("HTTP/1.1 100 Continue\r\n\r\n").count() == 1, "{text:?}");
    ensure!(text.contains(&hint("a")) && text.contains(&hint("b")) && text.contains("HTTP/1.1 200 OK\r\n"), "{text:?}");
    // HTTP/2 has no such switch (RFC 9113 section 8.6).
    let (text, _) = answer_of("http2-interim-switch", GET, |mut frames: Frames, stream| async move {
        frames.interim(stream, "101", &[]).await?;
        frames.closed().await
    })?;
    ensure!(text.starts_with("HTTP/1.1 502 ") && text.contains("error=http_protocol_error"), "{text:?}");
    // HTTP/1.0 has none.
    let (text, _) = answer_of("http2-interim-old", "GET / HTTP/1.0\r\nHost: edition.cnn.com\r\n\r\n", hints)?;
    ensure!(text == "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "{text:?}");
    Ok(())
}

#[test]
fn trailers_arrive_where_the_client_takes_them() -> Result<()> {
    let trailers = |mut frames: Frames, stream| async move {
        frames.head(stream, &[("trailer", "x-sum")]).await?;
        frames.data(stream, b"ok").await?;
        frames.trailers(stream, &[("x-sum", "7")]).await?;
        frames.closed().await
    };
    let asks = "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nConnection: close, TE\r\nTE: trailers\r\n\r\n";
    let (text, outcome) = answer_of("http2-trailers", asks, trailers)?;
    ensure!(text.ends_with("2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n") && outcome == "upgraded", "{outcome}: {text:?}");
    let (text, outcome) = answer_of("http2-no-trailers", GET, trailers)?;
    ensure!(text.ends_with("2\r\nok\r\n0\r\n\r\n") && outcome == "upgraded", "{outcome}: {text:?}");
    Ok(())
}

/// Nor is the response refused for what says nothing over HTTP/2, which some origins have of servers behind them.
#[test]
fn a_client_of_http2_has_trailers_in_any_case() -> Result<()> {
    let bed = TestBed::new("http2-client-trailers")?;
    let _origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            let stream = frames.request().await?;
            frames.head(stream, &[("upgrade", "h2,h2c"), ("connection", "Upgrade"), ("x-a", "1")]).await?;
            frames.data(stream, b"ok").await?;
            frames.trailers(stream, &[("x-sum", "7")]).await?;
            frames.closed().await
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = bed.client_command("curl")?.args(["-q", "-sSi", "--http2-prior-knowledge", URL]).run()?;
    ensure!(output.text().starts_with("HTTP/2 200 \r\nx-a: 1\r\n") && output.text().contains("x-sum: 7"), "{output:?}");
    ensure!(!output.text().contains("upgrade") && output.text().contains("ok"), "{output:?}");
    Ok(())
}

#[test]
fn a_response_that_is_reset_does_not_look_complete() -> Result<()> {
    async fn cut(mut frames: Frames, stream: u32, fields: &[(&str, &str)], code: u32) -> Result<()> {
        frames.head(stream, fields).await?;
        frames.data(stream, b"not all of it").await?;
        frames.reset(stream, code).await?;
        frames.closed().await
    }
    const LENGTH: &[(&str, &str)] = &[("content-length", "100")];
    let check = |(text, outcome): (String, String)| {
        // How far it gets is a matter of time.
        ensure!((text.is_empty() || text.contains("200 OK")) && !text.ends_with("0\r\n\r\n"), "{text:?}");
        ensure!(outcome == "truncated", "{outcome}: {text:?}");
        Ok(())
    };
    check(answer_of("http2-reset", GET, |frames, stream| cut(frames, stream, &[], code::INTERNAL_ERROR))?)?;
    check(answer_of("http2-cancel", GET, |frames, stream| cut(frames, stream, &[], code::CANCEL))?)?;
    // Which libraries take for the end.
    check(answer_of("http2-no-error", GET, |frames, stream| cut(frames, stream, &[], code::NO_ERROR))?)?;
    check(answer_of("http2-reset-sized", GET, |frames, stream| cut(frames, stream, LENGTH, code::NO_ERROR))?)?;
    check(answer_of("http2-gone", GET, |mut frames, stream| async move {
        frames.head(stream, &[]).await?;
        frames.data(stream, b"not all of it").await
    })?)
}

#[test]
fn curl_sees_that_a_response_was_cut() -> Result<()> {
    let bed = TestBed::new("http2-truncated")?;
    let (cut, seen) = watch::channel(0);
    let _origin = origin_http2(&bed)?
        .frames(move |mut frames| {
            let mut seen = seen.clone();
            async move {
                frames.greet(100).await?;
                for number in 1.. {
                    let stream = frames.request().await?;
                    frames.head(stream, &[]).await?;
                    frames.data(stream, b"not all of it").await?;
                    seen.wait_for(|seen| *seen >= number).await?;
                    frames.reset(stream, code::NO_ERROR).await?;
                }
                Ok(())
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    for (number, version) in (1..).zip(["--http1.1", "--http1.0"]) {
        let mut client = bed.client_command("curl")?.args(["-q", "-sSN", version, URL]).spawn()?;
        client.wait_for_output("not all of it")?;
        cut.send_replace(number);
        let code = client.wait(PATIENCE)?.code();
        // 18: part of the body is missing. 56: the connection was reset.
        ensure!([Some(18), Some(56)].contains(&code), "{version}: {code:?}");
        ensure!(agent.wait_for_records(number)?[number - 1].text("outcome") == "truncated");
    }
    Ok(())
}

#[test]
fn answers_without_content_have_none() -> Result<()> {
    let bed = TestBed::new("http2-bare")?;
    // As some servers do it: the head does not end the stream, an empty frame does.
    let _origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            loop {
                let stream = frames.request().await?;
                frames.head(stream, &[("content-length", "1234"), ("etag", "x")]).await?;
                frames.end(stream).await?;
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nETag: x\r\n\r\n";
    let output = converse(&bed, format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").repeat(2))?;
    ensure!(output.text() == head.repeat(2), "{output:?}");
    for record in agent.wait_for_records(2)? {
        ensure!(record.text("outcome") == "upgraded" && record.text("sent") == "0", "{record:?}");
    }
    Ok(())
}

#[test]
fn statuses_without_content_and_empty_answers_are_what_they_are() -> Result<()> {
    let bed = TestBed::new("http2-statuses")?;
    let origin = origin_http2(&bed)?
        .handler(|request| match request.target.as_str() {
            "/204" => Reply::status(204, &[("x-a", "1")], ""),
            "/304" => Reply::status(304, &[("etag", "x")], ""),
            "/404" => Reply::status(404, &[], "sorry"),
            _ => Reply::status(200, &[("set-cookie", "a=1; Secure"), ("set-cookie", "b=2")], ""),
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let output = converse(&bed, ["/204", "/304", "/", "/404"].map(ask).concat())?.text();
    let answers: Vec<_> = output.split("HTTP/1.1 ").skip(1).collect();
    let [no_content, not_modified, empty, not_found] = answers[..] else { anyhow::bail!("{output:?}") };
    ensure!(no_content.starts_with("204 No Content\r\nX-A: 1\r\n") && !no_content.contains("transfer"), "{output:?}");
    ensure!(not_modified.starts_with("304 Not Modified\r\nETag: x\r\n"), "{output:?}");
    ensure!(empty.starts_with("200 OK\r\nSet-Cookie: a=1; Secure\r\nSet-Cookie: b=2\r\n"), "{output:?}");
    ensure!(empty.contains("Content-Length: 0\r\n"), "{output:?}");
    ensure!(not_found.starts_with("404 Not Found\r\n") && not_found.ends_with("\r\n\r\nsorry"), "{output:?}");
    ensure!(origin.connections() == 1);
    Ok(())
}
