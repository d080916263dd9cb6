//! Origins that are not there, or that are something else than they should be.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    origin::{Reply, ServerTls},
    raw_server::RawServer,
};

use super::{DNS, SIMPLE, check_failed_record, check_failure, configure, record_of, rule};

/// A host, and how its failure is called.
struct Case {
    host: &'static str,
    entry: &'static str,
    status: u16,
    error: &'static str,
    cause: &'static str,
}

const fn case(host: &'static str, status: u16, error: &'static str, cause: &'static str) -> Case {
    Case { host, entry: DNS, status, error, cause }
}

const CASES: [Case; 9] = [
    case("refused.example", 502, "connection_refused", "Connection refused"),
    case("plain.example", 502, "tls_protocol_error", "HTTP in clear on this port"),
    case("reset.example", 502, "connection_terminated", "broke during the TLS handshake"),
    case("closed.example", 502, "connection_terminated", "closed the connection during the TLS handshake"),
    case("no-alpn.example", 502, "tls_alert_received", "alert no_application_protocol"),
    case("stalled.example", 504, "connection_timeout", "did not finish the TLS handshake within 10 s"),
    case("half.example", 504, "connection_timeout", "did not finish the TLS handshake within 10 s"),
    Case {
        entry: "resolution: STATIC\n  endpoints: [{address: 192.168.77.1}]",
        ..case("unroutable.example", 502, "destination_ip_unroutable", "Network is unreachable")
    },
    // The origin's namespace has no such address, and says nothing about it.
    Case {
        entry: "resolution: STATIC\n  endpoints: [{address: 198.51.100.250}]",
        ..case("silent.example", 504, "connection_timeout", "no TCP connection to 198.51.100.250:443 within 10s")
    },
];
const GOOD: &str = "good.example";

#[test]
fn every_way_to_fail_has_a_name() -> Result<()> {
    let hosts: Vec<_> = CASES.iter().map(|case| case.host).chain([GOOD]).collect();
    let bed = hosts.iter().fold(TestBed::builder("tls-unreachable"), |builder, host| builder.host(host)).build()?;
    let server =
        |host: &str, serve: fn(TcpStream) -> Result<()>| RawServer::start(bed.origin(), &bed.sockets(host, 443), serve);
    let _servers = [
        server("plain.example", answer_in_clear)?,
        server("reset.example", |stream| read_some(&stream).and_then(|()| reset(&stream)))?,
        server("closed.example", |stream| read_some(&stream))?,
        server("stalled.example", |stream| read_all(&stream))?,
        server("half.example", |mut stream| {
            // The beginning of a ServerHello.
            stream.write_all(&[22, 3, 3, 0, 122, 2, 0, 0, 118, 3, 3])?;
            read_all(&stream)
        })?,
    ];
    let origin = bed
        .embedded_origin()
        .handler(|_| Reply::ok("fine"))
        .tls(&bed.sockets(GOOD, 443), &ServerTls::new(bed.pki().server(&[GOOD])?))?
        .tls(
            &bed.sockets("no-alpn.example", 443),
            &ServerTls::new(bed.pki().server(&["no-alpn.example"])?).alpn(&["h3"]),
        )?
        .start()?;
    let tripwire = bed.tripwire(&hosts)?;
    let rules: Vec<_> = CASES.iter().map(|case| rule(case.host, case.entry, SIMPLE)).collect();
    let config = configure(&bed, &[rules, vec![rule(GOOD, DNS, SIMPLE)]].concat())?;
    let agent = bed.agent(&config)?;
    let capture = bed.capture()?;

    // At the same time, since some of them take the full ten seconds. None of them holds up another host.
    let results = thread::scope(|scope| {
        let ask = |case: &'static Case| {
            let url = format!("http://{}/secret", case.host);
            let bed = &bed;
            scope.spawn(move || bed.curl(&url)?.run())
        };
        let asked: Vec<_> = CASES.iter().map(ask).collect();
        let good = bed.curl(&format!("http://{GOOD}/"))?.response()?;
        ensure!(good.head.status == 200 && good.body == b"fine", "{good:?}");
        asked.into_iter().map(|thread| thread.join().expect("curl's thread does not panic")).collect::<Result<Vec<_>>>()
    })?;
    let trace = capture.stop()?;
    for (case, result) in CASES.iter().zip(&results) {
        check_failure(result, case.status, case.error, case.cause)?;
        ensure!(
            (case.status == 504) == (result.elapsed >= Duration::from_secs(10)),
            "{} took {:?}",
            case.host,
            result.elapsed
        );
    }
    let records = agent.wait_for_records(CASES.len() + 1)?;
    for case in &CASES {
        check_failed_record(&record_of(&records, case.host)?, case.status, case.cause)?;
    }
    for (host, cause) in [
        ("refused.example", "connection_refused"),
        ("unroutable.example", "unroutable"),
        ("silent.example", "connect_timeout"),
        ("closed.example", "handshake_closed"),
        ("half.example", "handshake_timeout"),
    ] {
        ensure!(record_of(&records, host)?.text("cause") == cause, "{host}: {records:?}");
    }
    ensure!(!trace.contains(b"secret"), "something of the request was to be seen");
    ensure!(trace.packets_of_port(80) == 0);
    origin.wait_for_requests(1)?;
    tripwire.assert_silent()
}

#[test]
fn an_origin_that_comes_back_is_used_again() -> Result<()> {
    let bed = TestBed::new("tls-comes-back")?;
    let host = "edition.cnn.com";
    let tls = ServerTls::new(bed.pki().server(&[host])?);
    let config = configure(&bed, &[rule(host, DNS, SIMPLE)])?;
    let _agent = bed.agent(&config)?;
    let ask = || bed.curl("http://edition.cnn.com/")?.run();
    check_failure(&ask()?, 502, "connection_refused", "Connection refused")?;
    let origin = bed.embedded_origin().tls(&bed.sockets(host, 443), &tls)?.start()?;
    ensure!(ask()?.statuses() == [200]);
    drop(origin);
    // The pooled connection is gone as well, and so is the retry on a fresh one.
    check_failure(&ask()?, 502, "connection_refused", "Connection refused")
}

#[test]
fn an_address_that_refuses_is_passed_over() -> Result<()> {
    let bed = TestBed::new("tls-next-address")?;
    let host = "edition.cnn.com";
    let tls = ServerTls::new(bed.pki().server(&[host])?);
    let [v4, _] = bed.sockets(host, 443);
    let origin = bed.embedded_origin().tls(&[v4], &tls)?.start()?;
    let config = configure(&bed, &[rule(host, DNS, SIMPLE)])?;
    let agent = bed.agent(&config)?;
    let response = bed.curl("http://edition.cnn.com/")?.args(["-6"]).response()?;
    ensure!(response.head.status == 200, "{response:?}");
    ensure!(origin.only_request()?.server == v4);
    ensure!(agent.wait_for_records(1)?[0].text("upstream") == v4.to_string());
    Ok(())
}

fn answer_in_clear(mut stream: TcpStream) -> Result<()> {
    read_some(&stream)?;
    stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?;
    read_all(&stream)
}

/// Takes what has come of the ClientHello.
fn read_some(mut stream: &TcpStream) -> Result<()> {
    let count = stream.read(&mut [0; 16 * 1024])?;
    ensure!(count > 0, "no ClientHello");
    Ok(())
}

/// Takes everything, until the other end closes.
fn read_all(mut stream: &TcpStream) -> Result<()> {
    std::io::copy(&mut stream, &mut std::io::sink())?;
    Ok(())
}

fn reset(stream: &TcpStream) -> Result<()> {
    Ok(socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))?)
}
