//! The record of a request: who, what, to where, and what became of it.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, LogLine},
    origin::{Reply, script},
    wait::{PATIENCE, wait_until},
};

use super::{CLIENT, HOST, HTTP2_BEGINS, configure, curl, frame, origin, prior_knowledge::get};

fn number(record: &LogLine, field: &str) -> Result<u64> {
    record.text(field).parse().with_context(|| format!("{field} is not a number: {record:?}"))
}

#[test]
fn a_record_has_everything_that_one_asks_for_first() -> Result<()> {
    let bed = TestBed::new("http-record")?;
    let origin = origin(&bed)?.handler(|_| Reply::status(201, &[], "created")).start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let mut client = bed
        .client_command("curl")?
        .args(["-q", "-sS", "-6", "--data", "0123456789", "-H", "Host: Edition.CNN.com:80"])
        .arg(format!("http://{HOST}/a%20b/c?secret=1"))
        .spawn()?;
    let pid = client.pid();
    ensure!(client.wait(PATIENCE)?.success(), "{:?}", client.stderr());
    let record = agent.wait_for_records(1)?.pop().context("no record")?;
    let [_, v6]: [SocketAddr; 2] = bed.sockets(HOST, 443);
    let expected = [
        ("level", "INFO".to_owned()),
        ("outcome", "upgraded".to_owned()),
        ("process", "curl".to_owned()),
        ("pid", pid.to_string()),
        ("method", "POST".to_owned()),
        ("host", HOST.to_owned()),
        // Without the query, which may hold what is not for logs.
        ("path", "/a%20b/c".to_owned()),
        ("status", "201".to_owned()),
        ("received", "10".to_owned()),
        ("sent", "7".to_owned()),
        ("origin", SocketAddr::new(v6.ip(), 80).to_string()),
        ("upstream", v6.to_string()),
        ("tls", "TLSv1.3".to_owned()),
        ("cipher", "TLS13_AES_256_GCM_SHA384".to_owned()),
        ("group", "X25519MLKEM768".to_owned()),
        ("reused", "false".to_owned()),
        ("error", String::new()),
    ];
    for (field, expected) in expected {
        ensure!(record.text(field) == expected, "{field} should be {expected}: {record:?}");
    }
    ensure!((1..10_000_000).contains(&number(&record, "duration_us")?), "{record:?}");
    ensure!(!agent.log_text().contains("secret"), "the query is in the log");
    origin.only_request().map(drop)
}

#[test]
fn a_request_that_never_got_anywhere_has_a_record_too() -> Result<()> {
    let bed = TestBed::new("http-record-failed")?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    curl(&bed, &["-4"])?;
    let record = agent.wait_for_records(1)?.pop().context("no record")?;
    for (field, expected) in [("outcome", "failed"), ("status", "502"), ("upstream", ""), ("tls", ""), ("reused", "")] {
        ensure!(record.text(field) == expected, "{field} should be {expected:?}: {record:?}");
    }
    ensure!(record.text("error").contains("Connection refused"), "{record:?}");
    // What the client got is the text of our own, which does not belong to a response to HEAD.
    ensure!(number(&record, "sent")? > 0 && number(&record, "received")? == 0, "{record:?}");
    curl(&bed, &["-4", "-I"])?;
    let record = agent.wait_for_records(2)?.pop().context("no record")?;
    ensure!(record.text("status") == "502" && number(&record, "sent")? == 0, "{record:?}");
    Ok(())
}

#[test]
fn records_that_cannot_be_written_are_counted() -> Result<()> {
    let bed = TestBed::new("http-record-full")?;
    let _origin = origin(&bed)?.start()?;
    let config = configure(&bed)?;
    let agent = Agent::start(&bed, &AgentOptions::new(config.path()).log_file(Path::new("/dev/full")))?;
    for _ in 0..3 {
        curl(&bed, &[])?.success()?;
    }
    wait_until("three lines to be lost", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_access_log_lines_lost_total", &[]) == 3.0)
    })
}

#[test]
fn what_came_of_a_request_that_is_given_up_is_in_its_record() -> Result<()> {
    let bed = TestBed::new("http-record-upload")?;
    // It reads, and says nothing.
    let _origin = origin(&bed)?
        .scripts(|_| {
            Some(script(|mut wire| async move {
                while !wire.read().await?.is_empty() {}
                Ok(())
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let file = bed.dir().join("body");
    fs::write(&file, vec![b'x'; 1 << 20])?;
    curl(&bed, &["--http2-prior-knowledge", "--max-time", "1", "-T", &file.display().to_string()])?;
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("outcome") == "aborted" && number(record, "received")? > 100_000, "{record:?}");
    Ok(())
}

#[test]
fn a_response_whose_end_its_client_does_not_take_was_not_delivered() -> Result<()> {
    let bed = TestBed::new("http-record-reset")?;
    let _origin = origin(&bed)?.handler(|_| Reply::ok("a".repeat(10) + &"b".repeat(10))).start()?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    // SETTINGS_INITIAL_WINDOW_SIZE is 10: the client takes no more of the response for now.
    let (preface, _) = HTTP2_BEGINS.split_at(HTTP2_BEGINS.len() - 9);
    let begin = [preface, b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\x0a", &get(1, "/")].concat();
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&begin)?;
    client.wait_for_bytes(&frame(0, 0, b"aaaaaaaaaa"))?;
    // RST_STREAM, with CANCEL
    client.write_stdin(b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08")?;
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("outcome") == "aborted", "{record:?}");
    Ok(())
}

#[test]
fn records_can_be_turned_off_and_text_can_be_read_by_people() -> Result<()> {
    let bed = TestBed::new("http-record-off")?;
    let _origin = origin(&bed)?.start()?;
    let config = configure(&bed)?;
    let quiet = AgentOptions::new(config.path()).args(&["--log-level", "info,egress::access=off"]);
    let agent = Agent::start(&bed, &quiet)?;
    curl(&bed, &[])?.success()?;
    ensure!(agent.metrics()?.sum("egress_requests_total", &[("outcome", "upgraded")]) == 1.0);
    ensure!(agent.records().is_empty() && !agent.log_text().contains("/politics"), "{}", agent.log_text());
    Ok(())
}

#[test]
fn metrics_that_the_readme_names_are_there() -> Result<()> {
    const README: &str = include_str!("../../../README.md");
    let bed = TestBed::new("http-metrics")?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let metrics = agent.metrics()?;
    let words = README.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
    // What is over at some time is there with what has a time alone. And one is a crate.
    let named = words.filter(|word| word.starts_with("egress_") && !word.ends_with("_timestamp_seconds"));
    let missing: Vec<_> = named.filter(|word| *word != "egress_common" && !metrics.has(word)).collect();
    ensure!(missing.is_empty(), "{missing:?}");
    Ok(())
}
