//! Heads and content that are not written as they should be, from applications and from origins.

use anyhow::{Result, ensure};
use harness::{TestBed, origin::Reply};

use super::{CLIENT, EMPTY, HOST, configure, converse, origin};

/// Who takes another byte for the end of a line than others do sees other fields, or another request.
#[test]
fn requests_with_other_ends_of_lines_are_refused_or_written_as_usual() -> Result<()> {
    let bed = TestBed::new("malformed-requests")?;
    let origin = origin(&bed)?.handler(|_| Reply::Raw(EMPTY.into())).start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let request = |lines: &str| format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n");
    for sent in [
        request("X-A: 1\rX-Smuggled: 1\r\n"),
        request("X-A: 1\r\r\n"),
        request("X-A\r: 1\r\n"),
        request("X-A: 1\0X-Smuggled: 1\r\n"),
        request("X-A\0: 1\r\n"),
        request("\0\r\n"),
        request("X-A: 1\r\n\tX-Smuggled: 1\r\n"),
        request("X-A: 1\n X-Smuggled: 1\r\n"),
        format!("GET / HTTP/1.1\rX-Smuggled: 1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET /\0 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET /\r HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        format!("GET\0 / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
    ] {
        let text = converse(&bed, sent.as_str())?.text();
        ensure!(text.starts_with("HTTP/1.1 400 ") && text.matches("HTTP/1.1 ").count() == 1, "{sent:?}: {text:?}");
    }
    ensure!(origin.connections() == 0, "{:?}", origin.requests());
    // That a lone LF ends a line is allowed (RFC 9112 section 2.2), and to be seen by nobody else.
    let output = converse(&bed, format!("GET / HTTP/1.1\nHost: {HOST}\nX-A: 1\n\n"))?;
    ensure!(output.stdout == EMPTY, "{output:?}");
    let seen = origin.only_request()?;
    ensure!(seen.head == request("X-A: 1\r\n").as_bytes(), "{seen:?}");
    tripwire.assert_silent()
}

#[test]
fn responses_with_other_ends_of_lines_are_refused_or_written_as_usual() -> Result<()> {
    let answer = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 0\r\n\r\n");
    let answers = [
        answer("X-A: 1\r\n folded\r\n"),
        answer("X-A: 1\r\n\tSet-Cookie: a=1\r\n"),
        answer("X-A: 1\rSet-Cookie: a=1\r\n"),
        answer("X-A: 1\r\r\n"),
        answer("X-A: 1\0Set-Cookie: a=1\r\n"),
        answer("X-A\0: 1\r\n"),
        "HTTP/1.1 200 OK\rSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n".to_owned(),
    ];
    let plain = answer("X-A: 1\r\n");
    let lone = plain.replace("\r\n", "\n");
    let bed = TestBed::new("malformed-responses")?;
    let given = answers.clone();
    let origin = origin(&bed)?
        .handler(move |request| {
            let number: usize = request.target[1..].parse().expect("a number for a path");
            Reply::Raw(given.get(number).unwrap_or(&lone).clone().into())
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = bed.agent(&config)?;
    let get = |number: usize| converse(&bed, format!("GET /{number} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    for (number, answer) in answers.iter().enumerate() {
        let text = get(number)?.text();
        ensure!(text.starts_with("HTTP/1.1 502 ") && !text.contains("a=1"), "{answer:?}: {text:?}");
        // On its connection nobody knows what comes next.
        ensure!(origin.connections() == number + 1, "{answer:?}: {} connections", origin.connections());
    }
    ensure!(get(answers.len())?.text() == plain);
    origin.wait_for_requests(answers.len() + 1).map(drop)
}

/// After it what some take for content is the next response to others.
#[test]
fn a_response_breaks_off_where_a_chunk_is_malformed() -> Result<()> {
    const HIDDEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhidden";
    let chunks = [
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        ";a\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhellojunk\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
    ];
    let bed = TestBed::new("malformed-chunks")?;
    let origin = origin(&bed)?
        .handler(move |request| {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
            let number: usize = request.target[1..].parse().expect("a number for a path");
            Reply::Raw(format!("{head}{}{HIDDEN}", chunks[number]).into())
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    for (number, chunk) in chunks.iter().enumerate() {
        let output = bed.curl(&format!("http://{HOST}/{number}"))?.run()?;
        // Part of the body is missing.
        ensure!(output.exit_code == 18 && output.statuses() == [200], "{chunk:?}: {output:?}");
        ensure!([&b"first"[..], b"firsthello"].contains(&&output.body[..]), "{chunk:?}: {output:?}");
        let records = agent.wait_for_records(number + 1)?;
        ensure!(records[number].text("outcome") == "truncated", "{chunk:?}: {:?}", records[number]);
        ensure!(origin.connections() == number + 1, "{chunk:?}: {} connections", origin.connections());
    }
    // Nor does what follows on the client's connection get what was hidden.
    let twice = format!("GET /0 HTTP/1.1\r\nHost: {HOST}\r\n\r\n").repeat(2);
    let address = bed.sockets(HOST, 80)[0].to_string();
    let output = bed.client_command(CLIENT)?.args(["raw", &address]).stdin(twice).run()?;
    ensure!(!output.text().contains("hidden"), "{output:?}");
    Ok(())
}
