//! Kinds of requests: with and without content, of old clients, and such as are refused.

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Reply, ServerTls},
    proxy_status::ProxyStatus,
};

use super::{Answers, EMPTY, HOST, agent_with_one_worker, ask_in_http2, configure, converse, curl, heads, origin};

#[test]
fn an_old_client_gets_an_answer_that_ends_with_the_connection() -> Result<()> {
    let bed = TestBed::new("http-1.0")?;
    let (answers, origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    // HTTP/1.0 has no switch of protocols, nor interim responses to be waited for.
    let fields = "Host: edition.cnn.com\r\nConnection: Upgrade\r\nUpgrade: x\r\nExpect: 100-continue\r\nX-A: 1";
    for (method, given, expected) in [
        (
            "GET",
            "HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.0 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhello",
        ),
        // It knows nothing of chunks: the end of the connection is the end of the body.
        (
            "GET",
            "HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nhello",
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\n",
        ),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n",
            "HTTP/1.0 304 Not Modified\r\nX-A: 1\r\n\r\n",
        ),
    ] {
        answers.set(given.as_bytes());
        let request = format!("{method} /old HTTP/1.0\r\n{fields}\r\n\r\n");
        // Not closed by the client, so that it is the agent who closes.
        let address = bed.sockets(HOST, 80)[0].to_string();
        let output = bed.client_command(super::CLIENT)?.args(["raw", &address]).stdin(request).run()?.success()?;
        ensure!(output.text() == expected, "{given:?}: {:?}", output.text());
        // The origin is spoken to as the agent can.
        let head = origin.take_requests().pop().context("no request")?.head;
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(head == format!("{method} /old HTTP/1.1\r\nHost: edition.cnn.com\r\nX-A: 1\r\n\r\n"), "{head:?}");
    }
    Ok(())
}

/// It says so, and is told so, for as long as the end of a response can be told.
#[test]
fn an_old_client_can_keep_its_connection() -> Result<()> {
    let bed = TestBed::new("http-1.0-keep-alive")?;
    let (answers, origin) = Answers::start(&bed, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let get = |number| format!("GET /{number} HTTP/1.0\r\nHost: {HOST}\r\nConnection: keep-alive\r\n\r\n");
    let client = bed.client_command(super::CLIENT)?.args(["talk", &address]).spawn()?;
    let answer = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok";
    for count in 1..=2 {
        client.write_stdin(get(count).as_bytes())?;
        client.wait_for_output(&answer.repeat(count))?;
    }
    drop(client);
    agent.wait_for_records(2)?;
    answers.set(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    // Which of them ends the connection, the agent does: the client waits for that.
    let output = bed.client_command(super::CLIENT)?.args(["raw", &address]).stdin(get(3) + &get(4)).run()?.success()?;
    ensure!(output.text() == "HTTP/1.0 200 OK\r\n\r\nhello", "{output:?}");
    let targets: Vec<_> = origin.wait_for_requests(3)?.into_iter().map(|request| request.target).collect();
    ensure!(targets == ["/1", "/2", "/3"], "{targets:?}");
    Ok(())
}

#[test]
fn bodies_of_requests_keep_their_framing() -> Result<()> {
    let bed = TestBed::new("http-request-bodies")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let long = "x".repeat(100_000);
    for (head, framed, body) in [
        ("POST / HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 5\r\n\r\n", "hello".to_owned(), "hello"),
        ("PUT / HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 100000\r\n\r\n", long.clone(), &long),
        // Content is not only for methods that are known to have it.
        ("GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 5\r\n\r\n", "hello".to_owned(), "hello"),
        ("DELETE / HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 5\r\n\r\n", "hello".to_owned(), "hello"),
        (
            "POST / HTTP/1.1\r\nHost: edition.cnn.com\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n".to_owned(),
            "hello",
        ),
        ("POST / HTTP/1.1\r\nHost: edition.cnn.com\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n".to_owned(), ""),
        // What is said of chunks is for who makes them (RFC 9112 section 7.1.1).
        (
            "POST / HTTP/1.1\r\nHost: edition.cnn.com\r\nTransfer-Encoding: chunked\r\n\r\n",
            "5;a=b;c=\"d;e\"\r\nhello\r\n0;f\r\n\r\n".to_owned(),
            "hello",
        ),
    ] {
        let mark = agent.records().len();
        let output = converse(&bed, format!("{head}{framed}"))?;
        ensure!(output.stdout == EMPTY, "{head:?}: {output:?}");
        let request = origin.take_requests().pop().context("no request")?;
        ensure!(request.head == head.as_bytes(), "{head:?}: {:?}", String::from_utf8_lossy(&request.head));
        ensure!(request.body == body.as_bytes(), "{head:?}: {} bytes", request.body.len());
        let chunked = head.contains("chunked");
        let chunk = if body.is_empty() { String::new() } else { format!("{:x}\r\n{body}\r\n", body.len()) };
        let expected = if chunked { chunk + "0\r\n\r\n" } else { body.to_owned() };
        ensure!(request.framed_body == expected.as_bytes(), "{head:?}: {request:?}");
        let record = agent.wait_for_records(mark + 1)?.pop().context("no record")?;
        ensure!(record.text("received") == body.len().to_string(), "{record:?}");
    }
    Ok(())
}

#[test]
fn trailers_arrive_where_they_are_announced() -> Result<()> {
    let bed = TestBed::new("http-trailers")?;
    let answer =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n";
    let (_answers, origin) = Answers::start(&bed, answer.as_bytes())?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let request = "POST / HTTP/1.1\r\nHost: edition.cnn.com\r\nTE: trailers\r\nConnection: TE\r\nTrailer: X-Check\r\n\
                   Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Check: 5\r\n\r\n";
    let output = converse(&bed, request)?;
    let seen = origin.only_request()?;
    ensure!(seen.body == b"hi", "{seen:?}");
    let trailers: Vec<_> =
        seen.trailers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    ensure!(trailers == [("x-check".to_owned(), "5")], "{seen:?}");
    ensure!(output.text().ends_with("\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"), "{:?}", output.text());
    Ok(())
}

#[test]
fn a_client_that_asks_before_it_sends_is_told_to_go_on() -> Result<()> {
    let bed = TestBed::new("http-continue")?;
    let origin = origin(&bed)?.handler(|request| Reply::ok(request.body.len().to_string())).start()?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    // curl waits up to a second for the 100, and then says so in its trace.
    let result = bed.curl(super::URL)?.header("Expect: 100-continue").args(["-v"]).body("hello".repeat(1000)).run()?;
    ensure!(result.statuses() == [100, 200] && result.body == b"5000", "{result:?}");
    ensure!(!result.stderr.contains("Done waiting for 100-continue"), "{result:?}");
    ensure!(origin.only_request()?.header("expect") == Some("100-continue"));
    Ok(())
}

#[test]
fn requests_that_cannot_be_meant_are_refused() -> Result<()> {
    let bed = TestBed::new("http-refused")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let cases = [
        ("CONNECT edition.cnn.com:443 HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n", 405),
        ("GET / HTTP/1.1\r\nX-A: 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nHost: other.example\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: edition.cnn.com@other.example\r\n\r\n", 400),
    ];
    for (done, (request, status)) in cases.iter().enumerate() {
        let text = converse(&bed, *request)?.text();
        ensure!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {text:?}");
        let field = text.lines().find_map(|line| line.strip_prefix("Proxy-Status: ")).context("no Proxy-Status")?;
        let proxy_status = ProxyStatus::parse(field)?;
        ensure!(
            proxy_status.get("error") == "http_request_error" && !proxy_status.get("details").is_empty(),
            "{field}"
        );
        let record = agent.wait_for_records(done + 1)?.pop().context("no record")?;
        ensure!(record.text("outcome") == "refused" && record.text("status") == status.to_string(), "{record:?}");
    }
    ensure!(origin.connections() == 0, "{:?}", origin.requests());
    tripwire.assert_silent()
}

#[test]
fn framing_that_two_servers_could_read_in_two_ways_goes_nowhere() -> Result<()> {
    let bed = TestBed::new("http-smuggling")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    for fields in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X-A: 1\r\n folded: 2\r\n",
    ] {
        let output = converse(&bed, format!("POST / HTTP/1.1\r\nHost: edition.cnn.com\r\n{fields}\r\nhello"))?;
        let text = output.text();
        ensure!(text.contains("\r\nProxy-Status: egress;error=http_request_error;"), "{fields:?}: {text:?}");
        ensure!(heads(text.split_inclusive("\r\n\r\n").next().unwrap_or_default())?.len() == 1, "{fields:?}: {text:?}");
        ensure!(text.starts_with("HTTP/1.1 400 "), "{fields:?}: {text:?}");
    }
    ensure!(origin.connections() == 0, "{:?}", origin.requests());
    tripwire.assert_silent()
}

/// What looks like a host would be the one that decides, and no rule's.
#[test]
fn a_path_without_its_slash_is_no_host() -> Result<()> {
    let bed = TestBed::new("http-targets")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let long = format!("/{}", "a".repeat(70_000));
    for (target, status) in [("index.html", 400), ("other.example:80", 400), (&long, 414)] {
        let text = converse(&bed, format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?.text();
        ensure!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {text:?}");
    }
    ensure!(origin.requests().is_empty(), "{:?}", origin.requests());
    tripwire.assert_silent()
}

/// A client that was not told to go on may or may not send its content after that.
#[test]
fn an_answer_instead_of_100_says_that_the_connection_ends() -> Result<()> {
    let bed = TestBed::new("http-no-continue")?;
    let refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno";
    let origin = origin(&bed)?
        .scripts(move |_| {
            Some(harness::origin::script(move |mut wire| async move {
                wire.write(refusal).await?;
                while !wire.read().await?.is_empty() {}
                Ok(())
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let sent = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let output = bed.client_command(super::CLIENT)?.args(["raw", &address]).stdin(sent).run()?;
    let expected = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
    ensure!(output.text() == expected, "{output:?}");
    origin.only_request().map(drop)
}

#[test]
fn an_early_answer_arrives_while_the_body_is_still_being_sent() -> Result<()> {
    let bed = TestBed::new("http-early")?;
    // It does not read a body that it does not want.
    let early = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 8\r\n\r\ntoo much";
    let origin = origin(&bed)?
        .scripts(move |request| {
            (request.method == "POST").then(|| {
                harness::origin::script(move |mut wire| async move {
                    wire.write(early).await?;
                    while !wire.read().await?.is_empty() {}
                    Ok(())
                })
            })
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    // A client that has announced more than it sends until it has its answer.
    let address = bed.sockets(HOST, 80)[0].to_string();
    let client = bed.client_command(super::CLIENT)?.args(["raw", &address]);
    let sent = "POST / HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 1000000\r\n\r\nthe beginning";
    let output = client.stdin(sent).run()?;
    ensure!(output.text().starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{output:?}");
    // Whoever goes on nevertheless does so on another connection.
    ensure!(output.text().ends_with("\r\nConnection: close\r\n\r\ntoo much"), "{output:?}");
    ensure!(agent.wait_for_records(1)?[0].text("status") == "413");

    // The next one is not harmed by what is left of it.
    let next = curl(&bed, &["-o", "/dev/null", "-w", "%{http_code}"])?;
    ensure!(next.text() == "200", "{next:?}");
    ensure!(origin.wait_for_requests(2)?.iter().map(|request| request.connection).eq([0, 1]));
    Ok(())
}

/// It ends the response by closing, with what it has not read: nothing more can be sent, and nothing is missing.
#[test]
fn an_early_answer_that_ends_with_its_connection_is_whole_though_the_request_is_not_taken() -> Result<()> {
    let bed = TestBed::new("http-early-close")?;
    let (answer, answers) = tokio::sync::watch::channel(());
    let _origin = origin(&bed)?
        .scripts(move |_| {
            let mut answers = answers.clone();
            Some(harness::origin::script(move |mut wire| async move {
                answers.changed().await?;
                wire.write(b"HTTP/1.1 413 Payload Too Large\r\n\r\ntoo much").await?;
                wire.shutdown().await
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    // More than all buffers on the way take.
    let file = bed.dir().join("body");
    std::fs::write(&file, vec![b'x'; 64 << 20])?;
    let upload = ["-q", "-sS", "--max-time", "60", "-H", "Expect:", "-T", &file.display().to_string(), super::URL];
    let mut client = bed.client_command("curl")?.args(upload).spawn()?;
    let (mut last, mut still) = (0, 0);
    harness::wait::wait_until("the upload to stand still", harness::wait::PATIENCE, || {
        let counts = std::fs::read_to_string(format!("/proc/{}/io", client.pid())).unwrap_or_default();
        let read = counts.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok()).unwrap_or(0);
        still = if read == std::mem::replace(&mut last, read) { still + 1 } else { 0 };
        // Not of the libraries that it begins with.
        read > 2 << 20 && still > 200
    })?;
    answer.send(())?;
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "upgraded", "{:?}", agent.records());
    client.wait_for_output("too much")?;
    client.kill();
    Ok(())
}

/// What comes after a line that is no size of a chunk is content to some and a request to others.
#[test]
fn nothing_is_a_request_after_content_that_is_malformed() -> Result<()> {
    for size in ["5\n", "5 5\r\n", "0x5\r\n"] {
        let bed = TestBed::new("http-smuggled")?;
        let origin = origin(&bed)?.start()?;
        let config = configure(&bed)?;
        let agent = bed.agent(&config)?;
        let hidden = format!("GET /hidden HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        let sent =
            format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{size}0\r\n\r\n{hidden}");
        let address = bed.sockets(HOST, 80)[0].to_string();
        let output = bed.client_command(super::CLIENT)?.args(["raw", &address]).stdin(sent).run()?;
        ensure!(output.text().starts_with("HTTP/1.1 400 "), "{size:?}: {}", output.text());
        ensure!(output.text().matches("HTTP/1.1 ").count() == 1, "{size:?}: {output:?}");
        ensure!(agent.wait_for_records(1)?.len() == 1, "{size:?}: {:?}", agent.records());
        ensure!(origin.requests().iter().all(|request| request.target != "/hidden"), "{:?}", origin.requests());
    }
    Ok(())
}

/// Only HTTP/1.1 can say that content is compressed on its way alone.
#[test]
fn a_transfer_coding_stays_with_content_where_http2_is_offered() -> Result<()> {
    let bed = TestBed::new("http-coded")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &[])?.success()?.code() == 0);
    let sent =
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: gzip, chunked\r\n\r\n6\r\nzipped\r\n0\r\n\r\n");
    let address = bed.sockets(HOST, 80)[0].to_string();
    let output = bed.client_command(super::CLIENT)?.args(["raw", &address, "--half-close"]).stdin(sent).run()?;
    ensure!(output.text().starts_with("HTTP/1.1 200 "), "{output:?}");
    let requests = origin.wait_for_requests(2)?;
    let versions: Vec<_> = requests.iter().map(|request| request.version.as_str()).collect();
    ensure!(versions == ["HTTP/2", "HTTP/1.1"], "{requests:?}");
    ensure!(requests[1].header("transfer-encoding") == Some("gzip, chunked") && requests[1].body == b"zipped");
    Ok(())
}

/// HTTP/1.0 and HTTP/2 have no field for it: they would take what is compressed for the content itself.
#[test]
fn content_that_is_coded_unasked_goes_to_those_who_can_be_told() -> Result<()> {
    let bed = TestBed::new("http-coded-answer")?;
    let coded = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n6\r\nzipped\r\n0\r\n\r\n";
    let (_answers, origin) = Answers::start(&bed, coded)?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let same = converse(&bed, format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
    ensure!(same.stdout == coded, "{same:?}");
    for (done, version) in ["--http1.0", "--http2-prior-knowledge"].into_iter().enumerate() {
        let status = curl(&bed, &[version, "-o", "/dev/null", "-w", "%{http_code}"])?;
        ensure!(status.text() == "502", "{version}: {status:?}");
        let record = agent.wait_for_records(done + 2)?.pop().context("no record")?;
        ensure!(
            record.text("cause") == "http_protocol" && record.text("error").contains("transfer coding"),
            "{record:?}"
        );
    }
    let client = bed.client_command(super::CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&ask_in_http2("websocket", "/"))?;
    client.wait_for_bytes(b"\x03502")?;
    ensure!(agent.wait_for_records(4)?[3].text("error").contains("transfer coding"), "{:?}", agent.records());
    // Each of them is read to its end.
    ensure!(origin.wait_for_requests(4)?.iter().all(|request| request.connection == 0), "{:?}", origin.requests());
    Ok(())
}
