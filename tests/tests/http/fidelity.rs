//! Byte for byte: heads arrive as they were sent, less what concerns one connection alone, and nothing is added.

use anyhow::{Context, Result, ensure};
use harness::TestBed;

use super::{Answers, CLIENT, EMPTY, HOST, configure, converse};

/// Sends each head and compares what the origin got.
fn check_requests(name: &str, cases: &[(&str, &str)]) -> Result<()> {
    let bed = TestBed::new(name)?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    for (done, (sent, expected)) in cases.iter().enumerate() {
        let output = converse(&bed, *sent)?;
        ensure!(output.text().starts_with("HTTP/1.1 200 OK\r\n"), "{sent:?}: {output:?}");
        let request = origin.take_requests().pop().with_context(|| format!("nothing came of {sent:?}"))?;
        let head = String::from_utf8_lossy(&request.head).into_owned();
        ensure!(head == *expected, "sent:     {sent:?}\nexpected: {expected:?}\ncame:     {head:?}");
        agent.wait_for_records(done + 1)?;
    }
    tripwire.assert_silent()
}

/// Gives each answer and compares what the client got.
fn check_responses(name: &str, cases: &[(&str, &str)]) -> Result<()> {
    let bed = TestBed::new(name)?;
    let (answers, _origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    for (given, expected) in cases {
        answers.set(given.as_bytes());
        let output = converse(&bed, "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n")?;
        ensure!(
            output.text() == *expected,
            "given:    {given:?}\nexpected: {expected:?}\ncame:     {:?}",
            output.text()
        );
    }
    Ok(())
}

#[test]
fn request_heads_arrive_as_they_were_sent() -> Result<()> {
    let unchanged = [
        "GET /politics HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        // Case and order of names, values with blanks and commas inside, empty values, bytes beyond ASCII.
        "GET / HTTP/1.1\r\nX-oDD-CASE: 1\r\nHOST: edition.cnn.com\r\naccept: */*\r\nUser-AGENT: legacy/0.9 (old; \
         but,  working)\r\nX-Empty:\r\nsoapaction: \"\"\r\nCOOKIE: a=1; b=2\r\nX-Latin: caf\u{e9}\r\n\r\n",
        // The same name twice, in two cases.
        "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nX-Twice: 1\r\nx-twice: 2\r\nX-Last: 3\r\n\r\n",
        "GET / HTTP/1.1\r\nX-Twice: 1\r\nHost: edition.cnn.com\r\nX-Between: 2\r\nx-twice:3\r\nX-Blank:   4 \r\n\r\n",
        // Nobody asks for another coding, another language or an answer for somebody else.
        "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nAccept-Encoding: gzip\r\nX-Forwarded-For: 10.1.1.1\r\nVia: 1.0 \
         old\r\nForwarded: for=10.1.1.1\r\nMax-Forwards: 3\r\n\r\n",
        // Host as the application writes it.
        "GET / HTTP/1.1\r\nHost: Edition.CNN.com:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: edition.cnn.com.\r\n\r\n",
        // Other methods, also such as nobody knows.
        "DELETE /a HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "PROPFIND /dav/ HTTP/1.1\r\nHost: edition.cnn.com\r\nDepth: 1\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "FROBNICATE / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "M-SEARCH * HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "get / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
    ];
    check_requests("http-heads", &unchanged.map(|head| (head, head)))
}

#[test]
fn targets_arrive_as_they_were_sent() -> Result<()> {
    let targets = [
        "/",
        "/%7Euser/%2e%2E/%2F/%E2%82%AC%zz",
        "//double//slashes/",
        "/a/./b/../c",
        "/a;b=1;c/d;e",
        "/?",
        "/a?",
        "/a?b=c?d&&e=%20+%2B&f[]=1|2",
        "/a?redirect=http://other.example:80/x?y=z",
        "/:80@other.example/",
        "/a\"b{c}d^e",
        "/caf\u{e9}",
        "/a<b>`c\\d",
        "/a#fragment?b#c",
    ];
    let heads = targets.map(|target| format!("GET {target} HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n"));
    check_requests("http-targets", &heads.each_ref().map(|head| (head.as_str(), head.as_str())))
}

/// Those of old applications are in whatever encoding they were written for.
#[test]
fn a_target_need_not_be_text() -> Result<()> {
    let bed = TestBed::new("http-target-bytes")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let head = b"GET /caf\xe9?\xff\x80 HTTP/1.1\r\nHost: edition.cnn.com\r\nX-Latin: caf\xe9\r\n\r\n";
    let output = converse(&bed, head)?;
    ensure!(output.text() == String::from_utf8_lossy(EMPTY), "{output:?}");
    ensure!(origin.only_request()?.head == head, "{:?}", origin.requests());
    Ok(())
}

#[test]
fn an_absolute_target_becomes_what_origins_expect() -> Result<()> {
    let expected = "GET /a?b HTTP/1.1\r\nHost: edition.cnn.com\r\nX-A: 1\r\n\r\n";
    check_requests(
        "http-absolute",
        &[
            ("GET http://edition.cnn.com/a?b HTTP/1.1\r\nHost: edition.cnn.com\r\nX-A: 1\r\n\r\n", expected),
            // The target counts, whatever Host says (RFC 9112 section 3.2.2).
            ("GET http://edition.cnn.com/a?b HTTP/1.1\r\nHost: other.example\r\nX-A: 1\r\n\r\n", expected),
            (
                "GET http://edition.cnn.com:80/a?b HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
                "GET /a?b HTTP/1.1\r\nHost: edition.cnn.com:80\r\n\r\n",
            ),
            (
                "GET http://edition.cnn.com HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
            ),
            (
                "GET http://edition.cnn.com?q=1 HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
                "GET /?q=1 HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
            ),
            // What comes after the authority is any target's.
            (
                "GET http://edition.cnn.com/a<b>?c\"d#f HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
                "GET /a<b>?c\"d#f HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
            ),
            (
                "GET http://edition.cnn.com?q={1} HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
                "GET /?q={1} HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
            ),
            (
                "GET http://edition.cnn.com#f HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
                "GET /#f HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
            ),
            (
                "OPTIONS http://edition.cnn.com HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
                "OPTIONS * HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
            ),
            (
                "OPTIONS http://edition.cnn.com/ HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
                "OPTIONS / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n",
            ),
        ],
    )
}

#[test]
fn what_concerns_our_connection_with_the_application_stays_there() -> Result<()> {
    let expected = "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\n\r\n";
    let with =
        |fields: &str| format!("GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n{fields}X-A: 1\r\nX-B: 2\r\nX-C: 3\r\n\r\n");
    let cases = [
        with("Connection: keep-alive\r\n"),
        with("Connection: close\r\n"),
        with("connection: Keep-Alive, X-Hop\r\nX-Hop: 1\r\nx-hop: 2\r\nKeep-Alive: timeout=5\r\n"),
        with("Connection: X-One\r\nX-One: 1\r\nConnection: x-two\r\nX-Two: 2\r\n"),
        with("Proxy-Connection: keep-alive\r\n"),
        with("TE: deflate\r\nConnection: TE\r\n"),
        // Java's client offers TLS this way (RFC 2817), and HTTP/2.
        with("Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n"),
        with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        // Host and framing are not the client's to take away.
        with("Connection: Host\r\n"),
    ];
    check_requests("http-hop-by-hop", &cases.each_ref().map(|sent| (sent.as_str(), expected)))
}

/// Of what concerns one connection this is said anew: many an origin sends trailers only to who takes them.
#[test]
fn origins_are_told_that_trailers_are_taken() -> Result<()> {
    let sent = "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nTE: trailers, deflate\r\nConnection: TE\r\nX-A: 1\r\n\r\n";
    let expected = "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nX-A: 1\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
    check_requests("http-takes-trailers", &[(sent, expected)])
}

#[test]
fn response_heads_arrive_as_they_were_given() -> Result<()> {
    let unchanged = [
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        // No Date is added, and none is replaced.
        "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\nSERVER: old\r\nX-oDD-CASE: 1\r\nContent-length: 0\r\n\r\n",
        "HTTP/1.1 200 Fine By Me\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 5\r\nX-After: 1\r\n\r\nsorry",
        "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n",
        // Cookies keep their order, and their attributes.
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Secure\r\nSet-Cookie: b=2; Path=/\r\nset-cookie: c=3\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX-A:1\r\nset-cookie:  b=2\r\nContent-Length: 0\r\n\r\n",
        // Interim responses come first.
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 301 Moved Permanently\r\nLocation: https://edition.cnn.com/x\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\nVia: 1.1 cdn\r\nAlt-Svc: h3=\":443\"\r\n\
         X-Latin: caf\u{e9}\r\nX-Empty: \r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ];
    check_responses("http-answers", &unchanged.map(|answer| (answer, answer)))
}

#[test]
fn framing_is_said_in_one_way() -> Result<()> {
    let chunked = "POST / HTTP/1.1\r\nHost: edition.cnn.com\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n";
    let request = |fields: &str| format!("POST / HTTP/1.1\r\nHost: edition.cnn.com\r\n{fields}X-A: 1\r\n\r\n0\r\n\r\n");
    let tab = request("Transfer-Encoding:\tchunked\r\n");
    let apart = request("Transfer-encoding:gzip\r\nTransfer-Encoding: chunked\r\n");
    let joined = chunked.replace("Transfer-Encoding: chunked", "Transfer-encoding: gzip, chunked");
    check_requests("http-framing", &[(&tab, chunked), (&apart, &joined)])?;
    let with = |fields: &str, content: &str| format!("HTTP/1.1 200 OK\r\n{fields}X-A: 1\r\n\r\n{content}");
    let chunks = with("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n");
    check_responses(
        "http-answers-framing",
        &[
            (
                &with("Transfer-Encoding: identity\r\nContent-Length: 5\r\n", "hello"),
                &with("Content-Length: 5\r\n", "hello"),
            ),
            (&with("Transfer-Encoding: chunked,\r\n", "5\r\nhello\r\n0\r\n\r\n"), &chunks),
            // What is said of chunks is for who makes them (RFC 9112 section 7.1.1).
            (&with("Transfer-Encoding: chunked\r\n", "5;a=b;c=\"d;e\"\r\nhello\r\n0;f\r\n\r\n"), &chunks),
            (&with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), &chunks),
        ],
    )
}

#[test]
fn trailers_arrive_as_they_were_sent() -> Result<()> {
    const TRAILERS: &str = "x-oDD: 1\r\nB:2 \r\nX-odd:  3\r\nETAG: \"a\"\r\n";
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n{TRAILERS}\r\n");
    check_responses("http-answers-trailers", &[(&answer, &answer)])?;
    let bed = TestBed::new("http-trailers")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let content = format!("5\r\nhello\r\n0\r\n{TRAILERS}\r\n");
    let head = "POST / HTTP/1.1\r\nHost: edition.cnn.com\r\nTransfer-Encoding: chunked\r\n\r\n";
    converse(&bed, format!("{head}{content}"))?.success()?;
    ensure!(origin.only_request()?.framed_body == content.as_bytes(), "{:?}", origin.requests());
    Ok(())
}

/// Some servers write it; who reads on sees a name with a blank, or no field at all (RFC 9112 section 5.1).
#[test]
fn a_blank_before_the_colon_is_removed_from_responses_and_refused_in_requests() -> Result<()> {
    let head =
        |blank: &str| format!("HTTP/1.1 200 OK\r\nServer{blank}: x\r\nX-A: 1\r\nContent-Length{blank}: 5\r\n\r\nhello");
    let chunks =
        |blank: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding{blank}: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    check_responses(
        "http-answers-blank",
        &[(&head(" "), &head("")), (&head("\t "), &head("")), (&chunks(" "), &chunks(""))],
    )?;
    let bed = TestBed::new("http-blank")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let text = converse(&bed, "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\nX-A : 1\r\n\r\n")?.text();
    ensure!(text.starts_with("HTTP/1.1 400 ") && origin.connections() == 0, "{text:?}");
    Ok(())
}

#[test]
fn what_concerns_our_connection_with_the_origin_stays_there() -> Result<()> {
    let expected = "HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 2\r\nX-B: 2\r\n\r\nok";
    let with = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}X-A: 1\r\nContent-Length: 2\r\nX-B: 2\r\n\r\nok");
    let cases = [
        with("Connection: keep-alive\r\nKeep-Alive: timeout=5, max=100\r\n"),
        with("Connection: close\r\n"),
        with("Connection: X-Hop\r\nX-Hop: 1\r\n"),
        with("Upgrade: h2,h2c\r\nConnection: Upgrade\r\n"),
        with("Proxy-Connection: keep-alive\r\n"),
    ];
    check_responses("http-answers-hop", &cases.each_ref().map(|given| (given.as_str(), expected)))?;
    let end = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let fields = "Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 3\r\n";
    let hints = |fields: &str| format!("HTTP/1.1 103 Early Hints\r\n{fields}Link: </a>\r\n\r\n{end}");
    check_responses("http-hints-hop", &[(&hints(fields), &hints(""))])
}

#[test]
fn large_heads_arrive_and_those_that_are_too_large_are_refused_with_a_reason() -> Result<()> {
    let head = |fields: usize, length: usize| {
        let fields: String = (0..fields).map(|number| format!("X-{number}: {}\r\n", "x".repeat(length))).collect();
        format!("GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n{fields}\r\n")
    };
    let (many, long) = (head(1000, 10), head(8, 8000));
    check_requests("http-large-heads", &[(&many, &many), (&long, &long)])?;
    let bed = TestBed::new("http-too-large")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    for (head, reason) in [(head(5000, 1), "more than 4096 fields"), (head(30, 10_000), "longer than 262144 bytes")] {
        let text = converse(&bed, head)?.text();
        ensure!(text.starts_with("HTTP/1.1 431 ") && text.contains(reason), "{text:?}");
        ensure!(text.contains("\r\nProxy-Status: egress;error=http_request_error;"), "{text:?}");
    }
    ensure!(origin.requests().is_empty(), "{:?}", origin.requests());
    Ok(())
}

#[test]
fn a_head_request_gets_the_head_that_a_get_would() -> Result<()> {
    let bed = TestBed::new("http-head")?;
    let (answers, origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nX-A: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n",
    ] {
        answers.set(head.as_bytes());
        let request = "HEAD /a HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n";
        // Twice on one connection: nothing of a body is waited for.
        let output = converse(&bed, request.repeat(2))?;
        ensure!(output.text() == head.repeat(2), "{head:?}: {:?}", output.text());
        for seen in origin.take_requests() {
            ensure!(seen.head == request.as_bytes(), "{seen:?}");
        }
    }
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    Ok(())
}

#[test]
fn requests_in_one_packet_are_answered_in_their_order() -> Result<()> {
    let bed = TestBed::new("http-pipelined")?;
    let origin = super::origin(&bed)?
        .handler(|request| {
            harness::origin::Reply::ok(format!("{}{}\n", request.target, String::from_utf8_lossy(&request.body)))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let requests: String = (0..20)
        .map(|number| match number % 2 {
            0 => format!("GET /{number} HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n"),
            _ => format!("POST /{number} HTTP/1.1\r\nHost: edition.cnn.com\r\nContent-Length: 5\r\n\r\n,body"),
        })
        .collect();
    let output = converse(&bed, requests)?;
    let answers: Vec<_> = output.text().lines().filter(|line| line.starts_with('/')).map(ToOwned::to_owned).collect();
    let expected: Vec<_> =
        (0..20).map(|number| if number % 2 == 0 { format!("/{number}") } else { format!("/{number},body") }).collect();
    ensure!(answers == expected, "{answers:?}");
    let paths: Vec<_> = agent.wait_for_records(20)?.iter().map(|record| record.text("path")).collect();
    ensure!(paths == (0..20).map(|number| format!("/{number}")).collect::<Vec<_>>(), "{paths:?}");
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    Ok(())
}

#[test]
fn the_odd_client_is_served_on_the_original_address() -> Result<()> {
    let bed = TestBed::new("http-peer")?;
    let (_answers, _origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    for address in bed.sockets(HOST, 80) {
        let output = bed.client_command(CLIENT)?.args(["http", &address.to_string()]).run()?.success()?;
        ensure!(output.stderr.contains(&format!("peername {address}")), "{output:?}");
    }
    Ok(())
}
