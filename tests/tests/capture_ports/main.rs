//! `--capture ports`: every connection to a configured port is looked at; those for configured hosts are upgraded wherever
//! they go, and the rest is passed on byte for byte.

mod bulk;
mod ending;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, binary},
    origin::{Origin, Reply, Request, ServerTls},
    process::Output,
    raw_server::RawServer,
    wait::{PATIENCE, wait_until},
};

const HOST: &str = "edition.cnn.com";
/// Has addresses that nobody connects to the host with.
const PLACE: &str = "place.example";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const PASSED_ON: &str = "egress_connections_passed_on_total";
/// Everything but the origin's networks, to which the test's node has explicit routes.
const ELSEWHERE: [&str; 6] = ["--host", HOST, "--capture", "ports", "--exclude-cidr", "203.0.113.0/24"];

#[test]
fn a_configured_host_is_upgraded_at_an_address_that_nobody_knows() -> Result<()> {
    let bed = bed("unknown")?;
    let _origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[PLACE])?;
    let agent = agent(&bed, &ELSEWHERE)?;
    for address in bed.addresses(PLACE).both() {
        let response = bed.curl(&format!("http://{HOST}/"))?.args(["--resolve", &at(HOST, address)]).response()?;
        ensure!(response.body == b"over TLS: edition.cnn.com\n", "{response:?}");
    }
    // A connection that was made long before its first request, and several requests on one.
    let hold = ["hold", &bed.sockets(PLACE, 80)[0].to_string(), "--count", "2"];
    let mut held = bed.client_command(CLIENT)?.args(hold).spawn()?;
    held.wait_for_output("connected\n")?;
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..2 {
        held.write_stdin(b"\n")?;
    }
    ensure!(held.wait(PATIENCE)?.success() && held.stdout().matches("over TLS: edition.cnn.com\n").count() == 2);
    ensure!(agent.wait_for_records(4)?.iter().all(|record| record.text("outcome") == "upgraded"));
    // The connection to the origin's port 80 that the silent client led to has carried nothing.
    let touches = tripwire.touches()?;
    ensure!(touches.len() <= 1 && touches.iter().all(|touch| touch.bytes.is_empty()), "{touches:?}");
    Ok(())
}

#[test]
fn a_silent_client_can_ask_for_a_configured_host_where_nothing_takes_it_in_clear() -> Result<()> {
    let bed = bed("silent")?;
    let _origin = origin(&bed)?;
    let _agent = agent(&bed, &ELSEWHERE)?;
    for address in bed.sockets(PLACE, 80) {
        let mut held = bed.client_command(CLIENT)?.args(["hold", &address.to_string()]).spawn()?;
        held.wait_for_output("connected\n")?;
        std::thread::sleep(Duration::from_millis(500));
        held.write_stdin(b"\n")?;
        ensure!(held.wait(PATIENCE)?.success(), "{:?}", held.stderr());
        ensure!(held.stdout().contains("over TLS: edition.cnn.com\n"), "{}", held.stdout());
    }
    Ok(())
}

/// What comes after a switch to HTTP/2 nobody can see the hosts of: so there is none.
#[test]
fn a_request_that_may_switch_to_http2_is_served_without() -> Result<()> {
    let bed = bed("h2c")?;
    let origin = bed.embedded_origin().clear(&bed.sockets(PLACE, 80)).handler(way).start()?;
    let _agent = agent(&bed, &ELSEWHERE)?;
    for address in bed.addresses(PLACE).both() {
        let curl = bed.curl("http://other.example/")?.args(["--http2", "--resolve", &at("other.example", address)]);
        let response = curl.response()?;
        ensure!(response.body == b"in clear: other.example\n", "{response:?}");
    }
    for request in origin.requests() {
        ensure!(request.version == "HTTP/1.1" && request.header("upgrade").is_none(), "{request:?}");
    }
    Ok(())
}

#[test]
fn other_traffic_is_passed_on_byte_for_byte() -> Result<()> {
    let bed = bed("bytes")?;
    let requests: [&[u8]; 6] = [
        b"get  /x?y#z HTTP/1.1\nHOST:other.example\nx-odd : \xff\xfe\nContent-Length: 5\n\nabcde",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nabcde\r\n0\r\nTrailer: 1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        // What goes through this tunnel is another port's.
        b"CONNECT edition.cnn.com:443 HTTP/1.1\r\nHost: edition.cnn.com:443\r\n\r\n\x16\x03\x01\x00\xc8",
        b"SSH-2.0-OpenSSH_9.2\r\n\0\x01\x02\x03",
        b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03 a ClientHello",
    ];
    let answer: &[u8] =
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 304 \xff\r\nContent-Length: 17\r\nX:a\nX:b\r\n\r\n\0\xff";
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let _server = RawServer::start(bed.origin(), &bed.sockets(PLACE, 80), move |mut stream| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        record.lock().expect("no panic").push((bytes, stream.peer_addr()?.ip()));
        Ok(stream.write_all(answer)?)
    })?;
    let agent = agent(&bed, &ELSEWHERE)?;
    for address in bed.sockets(PLACE, 80) {
        for request in requests {
            let output = raw(&bed, address, request)?;
            ensure!(output.stdout == answer, "{request:?}: {output:?}");
            let (bytes, from) = seen.lock().expect("no panic").remove(0);
            ensure!(bytes == request && from == bed.client_address(address.ip()), "{bytes:?} from {from}");
        }
    }
    let count = (2 * requests.len()) as f64;
    wait_until("all to be counted", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum(PASSED_ON, &[("outcome", "complete")]) == count)
    })
}

#[test]
fn a_server_may_speak_first() -> Result<()> {
    let bed = bed("greeting")?;
    let _server = RawServer::start(bed.origin(), &bed.sockets(PLACE, 80), |mut stream| {
        stream.write_all(b"220 ready\r\n")?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        stream.write_all(&bytes)?;
        Ok(())
    })?;
    let _agent = agent(&bed, &ELSEWHERE)?;
    for address in bed.sockets(PLACE, 80) {
        let mut client = bed.client_command(CLIENT)?.args(["talk", &address.to_string()]).spawn()?;
        client.wait_for_output("220 ready\r\n")?;
        client.write_stdin(b"EHLO pod.example\r\n")?;
        client.close_stdin();
        ensure!(client.wait(PATIENCE)?.success());
        ensure!(client.stdout() == "220 ready\r\nEHLO pod.example\r\n", "{:?}", client.stdout());
    }
    Ok(())
}

#[test]
fn a_request_for_a_configured_host_never_follows_another_in_clear() -> Result<()> {
    let bed = bed("follows")?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let _server = RawServer::start(bed.origin(), &bed.sockets(PLACE, 80), move |mut stream| {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                count => bytes.extend(&buffer[..count]),
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        }
        record.lock().expect("no panic").push(bytes);
        Ok(())
    })?;
    let agent = agent(&bed, &ELSEWHERE)?;
    for address in bed.sockets(PLACE, 80) {
        let command = bed.client_command(CLIENT)?.args(["http", &address.to_string(), "--count", "2"]);
        let output = command.args(["--host", "other.example", "--other-host", HOST]).run()?;
        // The first is answered; instead of the second's answer the connection ends.
        ensure!(!output.status.success() && output.text().ends_with("ok"), "{output:?}");
        ensure!(output.stderr.contains("closed without a response"), "{output:?}");
        let bytes = seen.lock().expect("no panic").remove(0);
        ensure!(bytes.starts_with(b"GET ") && !String::from_utf8_lossy(&bytes).contains(HOST), "{bytes:?}");
    }
    ensure!(agent.records().is_empty(), "{:?}", agent.records());
    Ok(())
}

#[test]
fn what_could_be_for_a_configured_host_goes_nowhere() -> Result<()> {
    let bed = bed("doubtful")?;
    let tripwire = bed.tripwire(&[PLACE])?;
    let agent = agent(&bed, &ELSEWHERE)?;
    let requests: [&[u8]; 3] = [
        b"GET /secret HTTP/1.1\r\nHost: edition.cnn.com\r\nCookie: secret\r\n",
        b"GET /secret",
        b"GET / HTTP/1.1\r\nHost: edition.cnn.com \xff\r\n\r\n",
    ];
    for address in bed.sockets(PLACE, 80) {
        for request in requests {
            let output = raw(&bed, address, request)?;
            ensure!(output.stdout.is_empty(), "{request:?}: {output:?}");
        }
    }
    ensure!(agent.metrics()?.sum(PASSED_ON, &[("outcome", "broken")]) == 2.0 * requests.len() as f64);
    tripwire.assert_silent()
}

#[test]
fn an_answer_that_comes_before_the_request_is_over_arrives() -> Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let bed = bed("early")?;
    let _server = RawServer::start(bed.origin(), &bed.sockets(PLACE, 80), |mut stream| {
        let mut head = [0; 64];
        stream.read_exact(&mut head)?;
        Ok(stream.write_all(ANSWER)?)
    })?;
    let _agent = agent(&bed, &ELSEWHERE)?;
    let request =
        [&b"POST / HTTP/1.1\r\nHost: other.example\r\nContent-Length: 4000000\r\n\r\n"[..], &[b'x'; 4_000_000]]
            .concat();
    let mut arrived = 0;
    for address in bed.sockets(PLACE, 80) {
        for _ in 0..5 {
            let mut client =
                bed.client_command(CLIENT)?.args(["talk", &address.to_string()]).stdin(request.clone()).spawn()?;
            client.wait(PATIENCE)?;
            arrived += usize::from(client.stdout().as_bytes() == ANSWER);
        }
    }
    // Its own reset may overtake the answer, as it may without us.
    ensure!(arrived > 0, "no answer arrived");
    Ok(())
}

#[test]
fn within_a_host_s_networks_nothing_is_excluded() -> Result<()> {
    const RULES: &str = include_str!("../../seed/tls-origination.yaml");
    let bed = bed("within")?;
    let _origin = origin(&bed)?;
    let tripwire = bed.tripwire(&[PLACE])?;
    let config = bed.config_dir()?;
    let networks = "addresses: [198.51.0.0/16, '2001:db8::/32']\n  resolution: NONE";
    config.write("rules.yaml", &RULES.replace("resolution: DNS", networks))?;
    let excluded = ["--exclude-cidr", "198.51.100.0/24", "--exclude-cidr", "2001:db8:2::/64"];
    let options = AgentOptions::new(config.path()).args(&["--capture", "ports"]).args(&excluded);
    let _agent = Agent::start(&bed, &options)?;
    for address in bed.addresses(PLACE).both() {
        let response = bed.curl(&format!("http://{HOST}/"))?.args(["--resolve", &at(HOST, address)]).response()?;
        ensure!(response.body == b"over TLS: edition.cnn.com\n", "{response:?}");
    }
    tripwire.assert_silent()
}

/// Its successor does not know yet whose addresses they are.
#[test]
fn what_a_dead_agent_knew_of_hosts_is_not_excluded() -> Result<()> {
    // Nobody answers there.
    let bed = TestBed::builder("inherited").host(HOST).resolv_conf("nameserver 127.0.0.1\n").build()?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let _origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.handler(way).start()?;
    let tripwire = bed.tripwire(&[HOST])?;
    let addresses = bed.addresses(HOST);
    let [v4, v6] = [format!("{}/32", addresses.v4), format!("{}/128", addresses.v6)];
    let arguments = ["--host", HOST, "--capture", "ports", "--exclude-cidr", &v4, "--exclude-cidr", &v6];
    agent(&bed, &arguments)?.kill();
    fs::write(bed.dir().join("hosts"), "127.0.0.1 localhost\n")?;
    let agent = Agent::spawn(&bed, &AgentOptions::new(bed.dir().join("config")).args(&arguments))?;
    wait_until("it to say what it lacks", PATIENCE, || {
        agent.admin("/readyz").is_ok_and(|(_, text)| text.contains(HOST))
    })?;
    for address in addresses.both() {
        let response = bed.curl(&format!("http://{HOST}/"))?.args(["--resolve", &at(HOST, address)]).response()?;
        ensure!(response.body == b"over TLS: edition.cnn.com\n", "{response:?}");
    }
    tripwire.assert_silent()
}

#[test]
fn what_cannot_be_reached_is_reset() -> Result<()> {
    let bed = bed("unreachable")?;
    let _agent = agent(&bed, &ELSEWHERE)?;
    for address in bed.sockets(PLACE, 80) {
        let output = raw(&bed, address, b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")?;
        ensure!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        // Whether the reset came before the client closed its side, or after.
        let reset = ["Connection reset by peer", "Broken pipe", "Transport endpoint is not connected"];
        ensure!(reset.iter().any(|reason| output.stderr.contains(reason)), "{output:?}");
    }
    Ok(())
}

#[test]
fn networks_that_the_node_has_routes_to_are_left_alone() -> Result<()> {
    let bed = bed("routes")?;
    // Behind the default route of pods and node, as the world is.
    for (netns, v4, v6) in [(bed.client(), "192.0.2.1", "2001:db8:1::1"), (bed.node(), "203.0.113.1", "2001:db8:3::1")]
    {
        netns
            .ip(&format!("route add default via {v4}\nroute add default via {v6}\nroute add 128.0.0.0/1 via {v4}\n"))?;
    }
    bed.origin().ip("addr add 198.18.0.1/32 dev lo\naddr add 3fff::1/128 dev lo nodad\n")?;
    let world: [IpAddr; 2] = ["198.18.0.1".parse()?, "3fff::1".parse()?];
    let at_80 = |addresses: [IpAddr; 2]| addresses.map(|address| SocketAddr::new(address, 80));
    let near = bed.addresses(PLACE).both();
    let clear = [at_80(world), at_80(near), at_80(bed.addresses(HOST).both())].concat();
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let _origin = bed.embedded_origin().clear(&clear).tls(&bed.sockets(HOST, 443), &tls)?.handler(way).start()?;
    let agent = agent(&bed, &["--host", HOST, "--capture", "ports"])?;
    let redirected = || -> Result<f64> {
        let before = agent.metrics()?.sum("egress_connects_total", &[("outcome", "redirected")]);
        Ok(before)
    };
    for (addresses, is_redirected) in [(world, 1.0), (near, 0.0)] {
        for address in addresses {
            let before = redirected()?;
            let resolve = at("other.example", address);
            let response = bed.curl("http://other.example/")?.args(["--resolve", &resolve]).response()?;
            ensure!(response.body == b"in clear: other.example\n", "{response:?}");
            ensure!(redirected()? - before == is_redirected, "{address}");
        }
    }
    // Addresses of a configured host are redirected even there.
    let response = bed.curl(&format!("http://{HOST}/"))?.response()?;
    ensure!(response.body == b"over TLS: edition.cnn.com\n", "{response:?}");
    let line = agent.log_text();
    for network in ["169.254.0.0/16", "fe80::/10", "198.51.100.0/24", "2001:db8:2::/64", "203.0.113.0/30"] {
        ensure!(line.contains(network), "{network}: {line}");
    }
    ensure!(!line.contains("128.0.0.0/1"), "{line}");
    Ok(())
}

#[test]
fn an_exclusion_without_capture_is_a_mistake() -> Result<()> {
    let bed = bed("usage")?;
    let output = bed.node_command(binary()?)?.args(["run", "--host", HOST, "--exclude-cidr", "10.0.0.0/8"]).run()?;
    ensure!(output.code() == 64, "{output:?}");
    ensure!(output.stderr.contains("--exclude-cidr is of use only with --capture ports"), "{output:?}");
    Ok(())
}

fn bed(name: &str) -> Result<TestBed> {
    TestBed::builder(name).host(HOST).host(PLACE).build()
}

/// The host, at the place's addresses.
fn origin(bed: &TestBed) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?).http1_only();
    let addresses = [bed.sockets(HOST, 443), bed.sockets(PLACE, 443)].concat();
    bed.embedded_origin().tls(&addresses, &tls)?.handler(way).start()
}

fn way(request: &Request) -> Reply {
    let way = if request.tls.is_some() { "over TLS" } else { "in clear" };
    Reply::ok(format!("{way}: {}\n", request.host))
}

fn agent<'bed>(bed: &'bed TestBed, arguments: &[&str]) -> Result<Agent<'bed>> {
    let config = bed.config_dir()?;
    Agent::start(bed, &AgentOptions::new(config.path()).args(arguments))
}

/// curl's way to name the address of a host.
fn at(host: &str, address: IpAddr) -> String {
    format!("{host}:80:{}", if address.is_ipv6() { format!("[{address}]") } else { address.to_string() })
}

fn raw(bed: &TestBed, address: SocketAddr, bytes: &[u8]) -> Result<Output> {
    bed.client_command(CLIENT)?.args(["raw", &address.to_string(), "--half-close"]).stdin(bytes).run()
}
