//! How long connections are tried for, kept and used.

use std::{
    fs, io,
    net::IpAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Origin, Reply, ServerTls},
    proxy_status::ProxyStatus,
    wait::{PATIENCE, wait_until},
};
use socket2::Socket;
use tokio::sync::watch;

use super::{
    Counter, HOST, SECOND, agent, agent_with_one_worker, bed, both, destination, echo, entry, get, origin,
    origin_http1, pooled, service,
};

const CLIENT: &str = env!("CARGO_BIN_EXE_client");
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\n";

/// Has a request made to each host, and waits until the connection of the one with settings is closed.
fn check_closed(bed: &TestBed, origin: &Origin, least: Duration) -> Result<()> {
    let begun = Instant::now();
    ensure!(get(bed, "/", &[])?.0 == 200);
    bed.curl(&format!("http://{SECOND}/"))?.response()?;
    wait_until("a connection to be closed", PATIENCE, || origin.open_connections() == 1)?;
    ensure!(begun.elapsed() >= least, "after {:?}", begun.elapsed());
    bed.curl(&format!("http://{SECOND}/"))?.response()?;
    let requests = origin.take_requests();
    ensure!(requests[2].connection == requests[1].connection, "the other connection has not been kept");
    Ok(())
}

#[test]
fn idle_connections_are_closed_when_the_settings_say() -> Result<()> {
    for settings in
        ["http: {idleTimeout: 1s}", "tcp: {idleTimeout: 1s}", "tcp: {idleTimeout: 1h}, http: {idleTimeout: 1s}"]
    {
        for http2 in [false, true] {
            let bed = bed("idle")?;
            let origin = if http2 { origin(&bed, echo)? } else { origin_http1(&bed, echo)? };
            let (_agent, _config) = agent_with_one_worker(&bed, &pooled(settings))?;
            check_closed(&bed, &origin, Duration::from_secs(1)).with_context(|| settings.to_owned())?;
        }
    }
    Ok(())
}

#[test]
fn idle_connections_of_a_rule_that_is_replaced_are_closed() -> Result<()> {
    for http2 in [false, true] {
        let bed = bed("idle-replaced")?;
        let origin = if http2 { origin(&bed, echo)? } else { origin_http1(&bed, echo)? };
        let (_agent, config) = agent_with_one_worker(&bed, &pooled("http: {idleTimeout: 1h}"))?;
        ensure!(get(&bed, "/", &[])?.0 == 200 && origin.open_connections() == 1);
        config.write("rules.yaml", &pooled("http: {idleTimeout: 2h}"))?;
        wait_until("the connection to be closed", PATIENCE, || origin.open_connections() == 0)?;
        ensure!(get(&bed, "/", &[])?.0 == 200);
    }
    Ok(())
}

#[test]
fn a_connection_that_takes_longer_than_a_request_may_is_there_for_those_that_follow() -> Result<()> {
    for http2 in [false, true] {
        let bed = TestBed::builder("slow-connect").host(HOST).host(SECOND).delay(Duration::from_millis(500)).build()?;
        let origin = if http2 { origin(&bed, echo)? } else { origin_http1(&bed, echo)? };
        // A round trip takes one second, and a connection two of them before a request is sent.
        let routes = format!("  - timeout: 1500ms\n    route: [{{destination: {{host: {HOST}}}}}]\n");
        let (_agent, _config) = agent_with_one_worker(&bed, &(both() + &service(&routes)))?;
        ensure!(get(&bed, "/", &[])?.0 == 504 && origin.requests().is_empty());
        wait_until("an answer", PATIENCE, || get(&bed, "/", &[]).is_ok_and(|(status, ..)| status == 200))?;
    }
    Ok(())
}

#[test]
fn connections_end_with_the_exchange_in_which_they_become_too_old() -> Result<()> {
    for http2 in [false, true] {
        let bed = bed("duration")?;
        let (release, released) = watch::channel(true);
        let handler = move |request: &_| Reply::Later(released.clone(), Box::new(echo(request)));
        let origin = if http2 { origin(&bed, handler)? } else { origin_http1(&bed, handler)? };
        let (_agent, _config) = agent_with_one_worker(&bed, &pooled("tcp: {maxConnectionDuration: 1s}"))?;
        check_closed(&bed, &origin, Duration::from_secs(1))?;
        let before = origin.connections();
        release.send_replace(false);
        let held = bed.client_command("curl")?.args(["-sS", &format!("http://{HOST}/held")]).spawn()?;
        origin.wait_for_requests(1)?;
        // One that is younger has served others meanwhile, and is closed before it.
        let begun = Instant::now();
        wait_until("its time to be over", PATIENCE, || begun.elapsed() > Duration::from_millis(1200))?;
        ensure!(origin.open_connections() == 2, "{} are open", origin.open_connections());
        release.send_replace(true);
        held.wait_for_output("GET edition.cnn.com /held\n")?;
        wait_until("its end", PATIENCE, || origin.open_connections() == 1)?;
        ensure!(origin.connections() == before + 1);
    }
    Ok(())
}

#[test]
fn a_switched_connection_ends_when_nobody_says_anything() -> Result<()> {
    let ask =
        |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n");
    let bed = bed("tunnel-idle")?;
    let _origin = origin_http1(&bed, |_| Reply::Echo(AGREE.into()))?;
    let (agent, _config) = agent(&bed, &pooled("tcp: {idleTimeout: 2s}"))?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let talk = bed.client_command(CLIENT)?.args(["talk", &address]).spawn()?;
    talk.write_stdin(ask("/chat").as_bytes())?;
    talk.wait_for_output("Switching")?;
    // For longer than that somebody says something.
    let begun = Instant::now();
    for number in 0.. {
        talk.write_stdin(format!("word {number}\n").as_bytes())?;
        talk.wait_for_output(&format!("word {number}\n"))?;
        if begun.elapsed() > Duration::from_secs(3) {
            break;
        }
        let spoken = Instant::now();
        wait_until("a breath", PATIENCE, || spoken.elapsed() > Duration::from_millis(100))?;
    }
    let silent = Instant::now();
    let record = &agent.wait_for_records(1)?[0];
    ensure!(silent.elapsed() > Duration::from_secs(1), "after {:?}", silent.elapsed());
    ensure!(record.text("error").contains("no bytes either way for 2s"), "{record:?}");
    Ok(())
}

#[test]
fn an_address_that_does_not_answer_has_the_time_that_the_settings_give_it() -> Result<()> {
    let bed = bed("connect-timeout")?;
    // The origin's namespace has no such address, and says nothing about it.
    let silent = "resolution: STATIC\n  endpoints: [{address: 198.51.100.250}]";
    let policy = "connectionPool: {tcp: {connectTimeout: 700ms}}";
    let (_agent, _config) = agent(&bed, &(entry(HOST, silent) + &destination(HOST, "", policy, "")))?;
    let (status, body, result) = get(&bed, "/", &[])?;
    ensure!(status == 504 && body.contains("no TCP connection to 198.51.100.250:443 within 700ms"), "{result:?}");
    let elapsed = result.elapsed;
    ensure!((Duration::from_millis(700)..Duration::from_secs(9)).contains(&elapsed), "{result:?}");
    let reason = ProxyStatus::parse(result.responses[0].header("proxy-status").unwrap_or_default())?;
    ensure!(reason.get("error") == "connection_timeout", "{reason:?}");
    Ok(())
}

#[test]
fn a_try_has_its_own_time_within_that_of_the_route() -> Result<()> {
    let bed = bed("per-try")?;
    let counter = Counter::default();
    // It answers when the test has ended.
    let (_release, released) = watch::channel(false);
    let origin = origin(&bed, move |request| match request.target.as_str() {
        "/second" if counter.next() % 2 == 0 => echo(request),
        _ => Reply::Later(released.clone(), Box::new(echo(request))),
    })?;
    let retries = "retries: {attempts: 2, perTryTimeout: 400ms, retryOn: \"5xx\", backoff: 5ms}";
    let routes = format!("  - timeout: 5s\n    {retries}\n    route: [{{destination: {{host: {HOST}}}}}]\n");
    let (_agent, _config) = agent(&bed, &(both() + &service(&routes)))?;
    let tried = |target: &str, arguments: &[&str], status: u16, tries: usize, text: &str| {
        let (found, body, result) = get(&bed, target, arguments)?;
        let requests = origin.take_requests();
        ensure!(found == status && requests.len() == tries, "{target} {arguments:?}: {result:?} {requests:?}");
        ensure!(body.contains(text) && result.elapsed < Duration::from_secs(5), "{result:?}");
        Ok(())
    };
    tried("/second", &[], 200, 2, "GET edition.cnn.com /second")?;
    tried("/never", &[], 504, 3, "no response within the 400ms")?;
    // It may have been processed, and would be a second time.
    tried("/never", &["-d", "pay"], 504, 1, "no response within the 400ms")
}

#[test]
fn keepalive_is_as_the_settings_say() -> Result<()> {
    let bed = bed("keepalive")?;
    let origin = origin_http1(&bed, echo)?;
    // A dead connection is found out after one second of silence and two probes, a second each.
    let (mut agent, _config) =
        agent_with_one_worker(&bed, &pooled("tcp: {tcpKeepalive: {time: 1s, interval: 1s, probes: 2}}"))?;
    ensure!(get(&bed, "/", &["-4"])?.0 == 200);
    bed.curl(&format!("http://{SECOND}/"))?.args(["-4"]).response()?;
    ensure!(origin.connections() == 2);
    let sockets = |host: &str| -> Result<String> {
        let filter = format!("dst {}", bed.addresses(host).v4);
        let output = bed.outside_command("ss")?.args(["-Htno", "state", "established", &filter]).run()?.success()?;
        Ok(output.text())
    };
    let timer = |host: &str| sockets(host).map(|text| text.contains("timer:(keepalive,"));
    ensure!(timer(HOST)? && timer(SECOND)?, "{} {}", sockets(HOST)?, sockets(SECOND)?);
    // Nothing comes from the origin any more.
    bed.origin().ip("route add blackhole 192.0.2.2/32\n")?;
    wait_until("the connection to be found dead", PATIENCE, || sockets(HOST).is_ok_and(|found| found.is_empty()))?;
    // The other one has the agent's own settings, by which that takes two minutes.
    ensure!(timer(SECOND)?, "{}", sockets(SECOND)?);
    let socket = socket_of(agent.process().pid(), bed.addresses(SECOND).v4.into())?;
    let own = (socket.tcp_keepalive_time()?, socket.tcp_keepalive_interval()?, socket.tcp_keepalive_retries()?);
    ensure!(own == (Duration::from_secs(60), Duration::from_secs(15), 4), "{own:?}");
    Ok(())
}

/// The one socket of a process that is connected to an address.
fn socket_of(pid: u32, address: IpAddr) -> Result<Socket> {
    // SAFETY: the call takes two numbers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as RawFd;
    ensure!(process >= 0, io::Error::last_os_error());
    // SAFETY: it was opened just now, and nobody else has it.
    let process = unsafe { OwnedFd::from_raw_fd(process) };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let numbers = descriptors.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    let sockets = numbers.filter_map(|number| {
        // SAFETY: the call takes three numbers.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) } as RawFd;
        // SAFETY: it was made just now, and nobody else has it.
        (copy >= 0).then(|| Socket::from(unsafe { OwnedFd::from_raw_fd(copy) }))
    });
    let is_it = |socket: &Socket| {
        socket.peer_addr().is_ok_and(|peer| peer.as_socket().is_some_and(|peer| peer.ip() == address))
    };
    let found: Vec<_> = sockets.filter(is_it).collect();
    ensure!(found.len() == 1, "{found:?}");
    found.into_iter().next().context("no socket")
}

/// Whoever gives up before anybody can say that a connection is dead must not keep it in use for ever.
#[test]
fn a_connection_on_which_nothing_comes_is_left_though_its_requests_are_given_up() -> Result<()> {
    let bed = bed("http2-silent")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.frames(|mut frames| async move {
        frames.greet(100).await?;
        let stream = frames.request().await?;
        frames.answer(stream, b"fine").await?;
        // It hears everything from now on, and says nothing.
        frames.closed().await
    });
    let origin = origin.start()?;
    let routes = format!("  - timeout: 2s\n    route: [{{destination: {{host: {HOST}}}}}]\n");
    let rules = entry(HOST, "resolution: DNS") + &destination(HOST, "", "", "") + &service(&routes);
    let (_agent, _config) = agent_with_one_worker(&bed, &rules)?;
    let ask = || get(&bed, "/", &[]).map(|(status, ..)| status);
    ensure!(ask()? == 200);
    for _ in 0..3 {
        ensure!(ask()? == 504 && origin.connections() == 1, "{}", origin.connections());
    }
    ensure!(ask()? == 200 && origin.connections() == 2, "{}", origin.connections());
    Ok(())
}
