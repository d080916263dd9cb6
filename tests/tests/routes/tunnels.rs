//! Through a proxy on the way out.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{TestBed, origin::Reply, raw_server::RawServer};
use nix::sched::{CloneFlags, setns};

use super::{HOST, SECOND, agent, bed, destination, echo, entry, get, origin};

/// Where the proxy listens.
const PORT: u16 = 3128;

/// A proxy at SECOND that tunnels to one address, or refuses; and what it was asked.
fn proxy(bed: &TestBed, to: SocketAddr, answer: &'static str) -> Result<(RawServer, Arc<Mutex<Vec<String>>>)> {
    proxy_at(bed, bed.sockets(SECOND, PORT)[0], to, Duration::ZERO, answer)
}

/// The same at this address, which takes its time.
fn proxy_at(
    bed: &TestBed,
    address: SocketAddr,
    to: SocketAddr,
    delay: Duration,
    answer: &'static str,
) -> Result<(RawServer, Arc<Mutex<Vec<String>>>)> {
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let seen = heads.clone();
    let netns = bed.origin().path().to_owned();
    let server = RawServer::start(bed.origin(), &[address], move |mut client| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        seen.lock().expect("no test panics with it").push(String::from_utf8_lossy(&head).into_owned());
        thread::sleep(delay);
        client.write_all(answer.as_bytes())?;
        if !answer.contains(" 200 ") {
            return Ok(());
        }
        // The thread is this connection's own.
        setns(File::open(&netns)?, CloneFlags::CLONE_NEWNET)?;
        let origin = TcpStream::connect(to)?;
        let (from, back) = (client.try_clone()?, origin.try_clone()?);
        let is_chunked = answer.contains("chunked");
        let there = thread::spawn(move || if is_chunked { unwrap(from, back) } else { copy(from, back) });
        if is_chunked {
            wrap(origin, &client)?;
        } else {
            copy(origin, client.try_clone()?)?;
        }
        client.shutdown(std::net::Shutdown::Both)?;
        there.join().ok();
        Ok(())
    })?;
    Ok((server, heads))
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    io::copy(&mut from, &mut to).map(drop)
}

/// What comes in chunks is passed on without them.
fn unwrap(from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        io::copy(&mut (&mut from).take(size), &mut to)?;
        from.read_line(&mut line)?;
        if size == 0 {
            return to.shutdown(std::net::Shutdown::Write);
        }
    }
}

/// What comes is passed on in chunks, cut up to make it harder.
fn wrap(mut from: TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1000];
    loop {
        let count = from.read(&mut buffer)?;
        let (head, rest) = buffer[..count].split_at(count.min(7));
        for chunk in [head, rest].into_iter().filter(|chunk| !chunk.is_empty() || count == 0) {
            to.write_all(format!("{:x}\r\n", chunk.len()).as_bytes())?;
            to.write_all(chunk)?;
            to.write_all(b"\r\n")?;
        }
        if count == 0 {
            return Ok(());
        }
    }
}

/// The host behind the proxy: what is connected to is the proxy, what is verified is the host.
fn rules(bed: &TestBed, protocol: &str) -> String {
    rules_for(&bed.addresses(SECOND).v4.to_string(), protocol, "")
}

/// The same for the proxy's address or name, with more of a `trafficPolicy`.
fn rules_for(address: &str, protocol: &str, policy: &str) -> String {
    let spec = format!("resolution: DNS\n  endpoints: [{{address: {address}, ports: {{http: {PORT}}}}}]");
    let tunnel = format!("tunnel: {{protocol: {protocol}, targetHost: {HOST}, targetPort: 443}}\n    {policy}");
    entry(HOST, &spec) + &destination(HOST, "", &tunnel, "")
}

#[test]
fn tls_is_made_inside_of_a_tunnel() -> Result<()> {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (protocol, answer, asked) in [
        (
            "CONNECT",
            "HTTP/1.1 200 OK\r\n\r\n",
            "CONNECT edition.cnn.com:443 HTTP/1.1\r\nHost: edition.cnn.com:443\r\n\r\n",
        ),
        ("POST", chunked, "POST / HTTP/1.1\r\nHost: edition.cnn.com:443\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ] {
        let bed = bed("tunnel")?;
        let tripwire = bed.tripwire(&[HOST])?;
        let origin = origin(&bed, |request| match request.target.as_str() {
            "/large" => Reply::ok(vec![b'x'; 300_000]),
            _ => echo(request),
        })?;
        let (_proxy, heads) = proxy(&bed, bed.sockets(HOST, 443)[0], answer)?;
        let (agent, _config) = agent(&bed, &rules(&bed, protocol))?;
        // The host's own: the proxy may be used by others, whatever they speak to it.
        ensure!(agent.metrics()?.sum("egress_destinations", &[]) == 2.0, "{:?}", agent.metrics()?);
        let capture = bed.capture()?;
        for _ in 0..2 {
            let (status, body, result) = get(&bed, "/secret", &[])?;
            ensure!((status, body.as_str()) == (200, "GET edition.cnn.com /secret\n"), "{result:?}");
        }
        let trace = capture.stop()?;
        ensure!(!trace.contains(b"/secret"), "the proxy's network could read the request");
        let found = heads.lock().expect("no test panics with it").clone();
        ensure!(found == [asked], "{found:?}");
        let sni = origin.requests().first().and_then(|request| request.tls.clone()).context("not over TLS")?.sni;
        ensure!(sni.as_deref() == Some(HOST), "{sni:?}");
        let content = "y".repeat(100_000);
        let (status, body, _) = get(&bed, "/large", &["-d", &content])?;
        ensure!(status == 200 && body.len() == 300_000, "{status} {}", body.len());
        ensure!(origin.requests()[2].body == content.as_bytes());
        tripwire.assert_silent()?;
    }
    Ok(())
}

#[test]
fn a_proxy_that_refuses_is_named() -> Result<()> {
    for (protocol, answer, reason) in [
        ("CONNECT", "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "it answers 407"),
        ("POST", "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n", "it answers 405"),
        ("POST", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "its answer has a length"),
    ] {
        let bed = bed("no-tunnel")?;
        let _origin = origin(&bed, |_| Reply::ok("never"))?;
        let (_proxy, _) = proxy(&bed, bed.sockets(HOST, 443)[0], answer)?;
        let (_agent, _config) = agent(&bed, &rules(&bed, protocol))?;
        let (status, body, result) = get(&bed, "/", &[])?;
        ensure!(status == 502 && body.contains("no tunnel to edition.cnn.com:443 through the proxy at"), "{result:?}");
        ensure!(body.contains(reason), "{result:?}");
    }
    Ok(())
}

#[test]
fn a_proxy_out_of_order_is_passed_over_for_another() -> Result<()> {
    const MADE: &str = "HTTP/1.1 200 OK\r\n\r\n";
    for (answer, expected, served) in [
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", 200, 1),
        ("SSH-2.0-OpenSSH\r\n", 200, 1),
        // What one does not want none is asked for.
        ("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", 502, 0),
    ] {
        let bed = bed("tunnel-next")?;
        let _origin = origin(&bed, echo)?;
        let target = bed.sockets(HOST, 443)[0];
        // The family that the application speaks comes first. An answer takes longer than a connection may.
        let [first, second] = bed.sockets(SECOND, PORT);
        let (_first, refused) = proxy_at(&bed, first, target, Duration::from_millis(600), answer)?;
        let (_second, made) = proxy_at(&bed, second, target, Duration::ZERO, MADE)?;
        let policy = "connectionPool: {tcp: {connectTimeout: 400ms}}";
        let (_agent, _config) = agent(&bed, &rules_for(SECOND, "CONNECT", policy))?;
        let (status, _, result) = get(&bed, "/", &["-4"])?;
        ensure!(status == expected, "{answer:?}: {result:?}");
        let asked = [refused, made].map(|heads| heads.lock().expect("no test panics with it").len());
        ensure!(asked == [1, served], "{answer:?}: {asked:?}");
    }
    Ok(())
}
