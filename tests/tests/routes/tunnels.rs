//! Through a proxy on the way out.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context, Result, ensure};
use harness::{TestBed, origin::Reply, raw_server::RawServer};
use nix::sched::{CloneFlags, setns};

use super::{HOST, SECOND, agent, bed, destination, echo, entry, get, origin};

/// Where the proxy listens.
const PORT: u16 = 3128;

/// A proxy that tunnels to one address, or refuses; and what it was asked.
fn proxy(bed: &TestBed, to: SocketAddr, answer: &'static str) -> Result<(RawServer, Arc<Mutex<Vec<String>>>)> {
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let seen = heads.clone();
    let netns = bed.origin().path().to_owned();
    let address = SocketAddr::new(bed.addresses(SECOND).v4.into(), PORT);
    let server = RawServer::start(bed.origin(), &[address], move |mut client| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        seen.lock().expect("no test panics with it").push(String::from_utf8_lossy(&head).into_owned());
        client.write_all(answer.as_bytes())?;
        if !answer.contains(" 200 ") {
            return Ok(());
        }
        // The thread is this connection's own.
        setns(File::open(&netns)?, CloneFlags::CLONE_NEWNET)?;
        let mut origin = TcpStream::connect(to)?;
        let (mut from, mut back) = (client.try_clone()?, origin.try_clone()?);
        let there = thread::spawn(move || io::copy(&mut from, &mut back));
        io::copy(&mut origin, &mut client)?;
        client.shutdown(std::net::Shutdown::Both)?;
        there.join().ok();
        Ok(())
    })?;
    Ok((server, heads))
}

/// The host behind the proxy: what is connected to is the proxy, what is verified is the host.
fn rules(bed: &TestBed) -> String {
    let proxy = bed.addresses(SECOND).v4;
    let spec = format!("resolution: STATIC\n  endpoints: [{{address: {proxy}, ports: {{http: {PORT}}}}}]");
    let tunnel = format!("tunnel: {{protocol: CONNECT, targetHost: {HOST}, targetPort: 443}}");
    entry(HOST, &spec) + &destination(HOST, "", &tunnel, "")
}

#[test]
fn tls_is_made_inside_of_a_tunnel() -> Result<()> {
    let bed = bed("tunnel")?;
    let tripwire = bed.tripwire(&[HOST])?;
    let origin = origin(&bed, echo)?;
    let (_proxy, heads) = proxy(&bed, bed.sockets(HOST, 443)[0], "HTTP/1.1 200 OK\r\n\r\n")?;
    let (_agent, _config) = agent(&bed, &rules(&bed))?;
    let capture = bed.capture()?;
    for _ in 0..2 {
        let (status, body, result) = get(&bed, "/secret", &[])?;
        ensure!((status, body.as_str()) == (200, "GET edition.cnn.com /secret\n"), "{result:?}");
    }
    let trace = capture.stop()?;
    ensure!(!trace.contains(b"/secret"), "the proxy's network could read the request");
    let asked = heads.lock().expect("no test panics with it").clone();
    ensure!(asked == ["CONNECT edition.cnn.com:443 HTTP/1.1\r\nHost: edition.cnn.com:443\r\n\r\n"], "{asked:?}");
    let sni = origin.requests().first().and_then(|request| request.tls.clone()).context("not over TLS")?.sni;
    ensure!(sni.as_deref() == Some(HOST), "{sni:?}");
    tripwire.assert_silent()
}

#[test]
fn a_proxy_that_refuses_is_named() -> Result<()> {
    let bed = bed("no-tunnel")?;
    let _origin = origin(&bed, |_| Reply::ok("never"))?;
    let answer = "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
    let (_proxy, _) = proxy(&bed, bed.sockets(HOST, 443)[0], answer)?;
    let (_agent, _config) = agent(&bed, &rules(&bed))?;
    let (status, body, result) = get(&bed, "/", &[])?;
    ensure!(status == 502 && body.contains("no tunnel to edition.cnn.com:443 through the proxy at"), "{result:?}");
    ensure!(body.contains("it answers 407"), "{result:?}");
    Ok(())
}
