//! Connections that serve more than one request, on both sides.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    origin::{Reply, Request, script},
    proxy_status::ProxyStatus,
    wait::{PATIENCE, wait_until},
};

use super::{Answers, CLIENT, EMPTY, HOST, URL, agent_with_one_worker, configure, curl, heads, origin, origin_http2};

fn connections(requests: &[Request]) -> Vec<usize> {
    requests.iter().map(|request| request.connection).collect()
}

/// HTTP/1.0 has no chunks: where the next response ends is anybody's guess.
#[test]
fn a_connection_of_http_1_0_with_chunks_is_used_once() -> Result<()> {
    let bed = TestBed::new("reuse-http-1.0")?;
    let answer = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (answers, origin) = Answers::start(&bed, answer.as_bytes())?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    for connections in 1..=2 {
        let output = curl(&bed, &[])?.success()?;
        ensure!(output.text() == "ok" && origin.connections() == connections, "{output:?}");
    }
    answers.set(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok");
    for _ in 1..=2 {
        let output = curl(&bed, &[])?.success()?;
        ensure!(output.text() == "ok" && origin.connections() == 3, "{output:?}");
    }
    Ok(())
}

#[test]
fn requests_of_one_connection_share_one_upstream_connection() -> Result<()> {
    let bed = TestBed::new("http-keep-alive")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let agent = bed.agent(&config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let output = bed.client_command(CLIENT)?.args(["http", &address, "--count", "20"]).run()?.success()?;
    ensure!(heads(&output.text())?.len() == 20, "{output:?}");
    ensure!(connections(&origin.wait_for_requests(20)?) == [0; 20], "{:?}", connections(&origin.requests()));
    ensure!(origin.connections() == 1);
    let reused: Vec<_> = agent.wait_for_records(20)?.iter().map(|record| record.text("reused")).collect();
    ensure!(reused[0] == "false" && reused[1..].iter().all(|reused| reused == "true"), "{reused:?}");
    let metrics = agent.metrics()?;
    ensure!(metrics.sum("egress_upstream_handshakes_total", &[]) == 1.0);
    ensure!(metrics.sum("egress_requests_total", &[("outcome", "upgraded")]) == 20.0);
    Ok(())
}

#[test]
fn connections_are_shared_within_a_pod_and_not_between_pods() -> Result<()> {
    let mut bed = TestBed::new("http-pods")?;
    let other = bed.add_pod("other")?;
    let (_answers, origin) = Answers::start(&bed, EMPTY)?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    for _ in 0..3 {
        curl(&bed, &["-4"])?.success()?;
    }
    ensure!(connections(&origin.take_requests()) == [0; 3]);
    let in_other = |program: &str| bed.pod_command(&other, program)?.in_cgroup(bed.cgroup());
    let curl_in_other = || in_other("curl")?.args(["-q", "-sS", "-4", "--max-time", "15", URL]).run();
    let _sandbox = in_other("sleep")?.arg("infinity").spawn()?;
    // Until the agent has noticed the pod, its connects are refused.
    wait_until("the other pod to be served", PATIENCE, || curl_in_other().is_ok_and(|output| output.code() == 0))?;
    for _ in 0..2 {
        curl_in_other()?.success()?;
    }
    let requests = origin.take_requests();
    ensure!(connections(&requests) == [1; 3], "{:?}", connections(&requests));
    let own = bed.client_address(requests[0].server.ip());
    ensure!(requests.iter().all(|request| request.client.ip() != own), "the other pod's address is not its own");
    curl(&bed, &["-4"])?.success()?;
    let requests = origin.take_requests();
    ensure!(connections(&requests) == [0] && requests[0].client.ip() == own, "{requests:?}");
    Ok(())
}

#[test]
fn requests_at_the_same_time_get_connections_of_their_own() -> Result<()> {
    let bed = TestBed::new("http-parallel")?;
    // Answers when all three are there.
    let (release, waiting) = (tokio::sync::watch::channel(0_usize), 3);
    let (release, released) = release;
    let origin = origin(&bed)?
        .scripts(move |_| {
            release.send_modify(|count| *count += 1);
            let mut released = released.clone();
            Some(script(move |mut wire| async move {
                released.wait_for(|count| *count >= waiting).await?;
                wire.write(EMPTY).await
            }))
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = curl(&bed, &["--parallel", "--parallel-immediate", URL, URL])?.success()?;
    ensure!(output.stdout.is_empty(), "{output:?}");
    let mut seen = connections(&origin.wait_for_requests(3)?);
    seen.sort_unstable();
    ensure!(seen == [0, 1, 2], "{seen:?}");
    Ok(())
}

#[test]
fn a_request_takes_what_is_free_while_its_own_connection_is_being_made() -> Result<()> {
    let bed = TestBed::new("http-slow-accept")?;
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = origin(&bed)?
        .accepts(1)
        .handler(move |request| match request.target.as_str() {
            "/first" => Reply::Later(released.clone(), Box::new(Reply::ok("fine"))),
            _ => Reply::ok("fine"),
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let begin = |url: &str| bed.client_command("curl")?.args(["-q", "-sSf", "--max-time", "15", url]).spawn();
    let first = begin(&format!("http://{HOST}/first"))?;
    origin.wait_for_requests(1)?;
    let second = begin(URL)?;
    // The kernel has a connection for it, and nobody answers on that.
    thread::sleep(Duration::from_millis(300));
    release.send_replace(true);
    for mut client in [first, second] {
        ensure!(client.wait(PATIENCE)?.success(), "{client:?}");
    }
    ensure!(connections(&origin.requests()) == [0, 0], "{:?}", origin.requests());
    ensure!(agent.wait_for_records(2)?.iter().all(|record| record.text("outcome") == "upgraded"));
    Ok(())
}

#[test]
fn an_origin_that_closes_after_each_answer_without_saying_so_is_no_trouble() -> Result<()> {
    const ROUNDS: usize = 30;
    let bed = TestBed::new("http-closes-idle")?;
    let origin = origin(&bed)?.handler(|_| Reply::RawThenClose(EMPTY.to_vec())).start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    // One after the other without a pause, so that the close comes before, while and after the next one is sent.
    let arguments = ["http", &address, "--count", &ROUNDS.to_string()];
    let output = bed.client_command(CLIENT)?.args(arguments).run()?.success()?;
    let text = output.text();
    let heads = heads(&text)?;
    ensure!(heads.len() == ROUNDS && heads.iter().all(|head| head.starts_with("HTTP/1.1 200 OK\r\n")), "{heads:?}");
    ensure!(origin.wait_for_requests(ROUNDS)?.len() == ROUNDS);
    ensure!(agent.wait_for_records(ROUNDS)?.iter().all(|record| record.text("outcome") == "upgraded"));
    Ok(())
}

/// An origin that answers the first request on each connection, and closes upon the second.
fn forgetful(bed: &TestBed) -> Result<harness::origin::Origin> {
    let last = AtomicUsize::new(usize::MAX);
    origin(bed)?
        .handler(move |request| match last.swap(request.connection, Ordering::Relaxed) == request.connection {
            true => Reply::Close,
            false => Reply::Raw(EMPTY.to_vec()),
        })
        .start()
}

#[test]
fn a_get_that_meets_a_closing_connection_is_sent_again_on_a_fresh_one() -> Result<()> {
    for method in ["GET", "HEAD", "OPTIONS", "DELETE"] {
        let bed = TestBed::new("http-retry")?;
        let origin = forgetful(&bed)?;
        let config = configure(&bed)?;
        let agent = agent_with_one_worker(&bed, &config)?;
        curl(&bed, &[])?.success()?;
        let arguments = if method == "HEAD" { vec!["-I"] } else { vec!["-X", method] };
        let output = curl(&bed, &[&arguments[..], &["-o", "/dev/null", "-w", "%{http_code}"]].concat())?;
        ensure!(output.text() == "200", "{method}: {output:?}");
        let requests = origin.wait_for_requests(3)?;
        ensure!(connections(&requests) == [0, 0, 1], "{method}: {:?}", connections(&requests));
        ensure!(requests[1].head == requests[2].head && requests[1].method == method, "{requests:?}");
        let record = agent.wait_for_records(2)?.pop().context("no record")?;
        ensure!(record.text("outcome") == "upgraded" && record.text("reused") == "false", "{record:?}");
    }
    Ok(())
}

#[test]
fn a_post_that_may_have_been_heard_is_never_sent_again() -> Result<()> {
    for arguments in [
        vec!["-d", "amount=100"],
        vec!["-X", "POST"],
        vec!["-X", "PUT", "-d", "amount=100"],
        vec!["-X", "PATCH", "-d", "amount=100"],
        vec!["-d", "amount=100", "-H", "Transfer-Encoding: chunked"],
    ] {
        let bed = TestBed::new("http-no-retry")?;
        let origin = forgetful(&bed)?;
        let config = configure(&bed)?;
        let agent = agent_with_one_worker(&bed, &config)?;
        curl(&bed, &[])?.success()?;
        let output = curl(&bed, &[&arguments[..], &["-D", "/dev/stderr", "-w", "%{http_code}"]].concat())?;
        ensure!(output.text().ends_with("502"), "{arguments:?}: {output:?}");
        let field = output.stderr.lines().find_map(|line| line.strip_prefix("Proxy-Status: ")).context("no field")?;
        ensure!(ProxyStatus::parse(field.trim())?.get("error") == "http_response_incomplete", "{arguments:?}: {field}");
        let record = agent.wait_for_records(2)?.pop().context("no record")?;
        ensure!(record.text("outcome") == "failed" && !record.text("error").is_empty(), "{record:?}");
        ensure!(connections(&origin.wait_for_requests(2)?) == [0, 0], "{arguments:?}: {:?}", origin.requests());
        // It is not held against the origin.
        curl(&bed, &[])?.success()?;
        ensure!(connections(&origin.wait_for_requests(3)?) == [0, 0, 1], "{arguments:?}");
    }
    Ok(())
}

/// It was heard then, and who has been told something of its answer is not told that twice.
#[test]
fn a_request_whose_answer_has_begun_is_never_sent_again() -> Result<()> {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n";
    for (method, begun, reset) in [
        ("DELETE", "HTTP/1.1 200 O", true),
        ("GET", "HTTP/1.1 200 O", false),
        ("GET", HINTS, false),
        ("GET", HINTS, true),
    ] {
        let bed = TestBed::new("http-begun")?;
        let last = AtomicUsize::new(usize::MAX);
        let origin = origin(&bed)?
            .scripts(move |request| {
                let is_second = last.swap(request.connection, Ordering::Relaxed) == request.connection;
                is_second.then(|| {
                    script(move |mut wire| async move {
                        wire.write(begun.as_bytes()).await?;
                        if reset { wire.reset_on_close() } else { Ok(()) }
                    })
                })
            })
            .handler(|_| Reply::Raw(EMPTY.to_vec()))
            .start()?;
        let config = configure(&bed)?;
        let agent = agent_with_one_worker(&bed, &config)?;
        curl(&bed, &[])?.success()?;
        let output = curl(&bed, &["-X", method, "-i", "-o", "/dev/stderr", "-w", "%{http_code}"])?;
        ensure!(output.text() == "502", "{method} {begun:?}: {output:?}");
        ensure!(output.stderr.matches("103 Early Hints").count() == begun.matches("103").count(), "{output:?}");
        let record = agent.wait_for_records(2)?.pop().context("no record")?;
        ensure!(record.text("outcome") == "failed" && record.text("reused") == "true", "{record:?}");
        ensure!(connections(&origin.wait_for_requests(2)?) == [0, 0], "{method} {begun:?}: {:?}", origin.requests());
    }
    Ok(())
}

#[test]
fn a_request_with_an_interim_response_over_http2_is_never_sent_again() -> Result<()> {
    let bed = TestBed::new("http2-begun")?;
    let origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            let first = frames.request().await?;
            frames.answer(first, b"fine").await?;
            let second = frames.request().await?;
            frames.interim(second, "103", &[("link", "</a.css>")]).await
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &[])?.success()?.text() == "fine");
    let output = curl(&bed, &["-i", "-o", "/dev/stderr", "-w", "%{http_code}"])?;
    ensure!(output.text() == "502" && output.stderr.matches("103 Early Hints").count() == 1, "{output:?}");
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    Ok(())
}

#[test]
fn a_get_is_not_sent_again_on_a_connection_that_was_fresh() -> Result<()> {
    let bed = TestBed::new("http-retry-once")?;
    let origin = origin(&bed)?.handler(|_| Reply::Close).start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = curl(&bed, &["-o", "/dev/null", "-w", "%{http_code}"])?;
    ensure!(output.text() == "502", "{output:?}");
    ensure!(origin.requests().len() == 1, "{:?}", origin.requests());
    Ok(())
}

/// Such a 408 is about the time before the request, which it has crossed (RFC 9110 section 15.5.9).
#[test]
fn an_origin_that_ends_an_idle_connection_by_a_408_is_asked_again_where_that_is_safe() -> Result<()> {
    let bed = TestBed::new("reuse-408")?;
    let idle = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\nConnection: close\r\n\r\nidle";
    let slow = "HTTP/1.1 408 Request Timeout\r\nContent-Length: 4\r\n\r\nslow";
    let used = std::sync::Mutex::new(std::collections::HashSet::new());
    let origin = origin(&bed)?
        .handler(move |request| {
            let is_used = !used.lock().expect("no panic").insert(request.connection);
            match (request.target.as_str(), is_used) {
                ("/idle", true) | ("/late", _) => Reply::RawThenClose(idle.into()),
                ("/slow", _) => Reply::Raw(slow.into()),
                _ => Reply::ok("fine"),
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let ask = |path: &str, method: &str| -> Result<String> {
        let url = format!("http://{HOST}{path}");
        let arguments = ["-q", "-sS", "--max-time", "15", "-X", method, "-w", " %{http_code}", &url];
        Ok(bed.client_command("curl")?.args(arguments).run()?.success()?.text())
    };
    for (path, method, expected, asked) in [
        // On a connection that was idle, and then on a fresh one.
        ("/idle", "GET", "fine 200", 2),
        // It may have been processed.
        ("/idle", "POST", "idle 408", 1),
        // Once, and not on a fresh one.
        ("/late", "GET", "idle 408", 2),
        // It is about the request, as the connection goes on.
        ("/slow", "GET", "slow 408", 1),
    ] {
        // There is a connection, and only one.
        ensure!(ask("/", "GET")? == "fine 200");
        origin.take_requests();
        let answer = ask(path, method)?;
        ensure!(answer == expected, "{method} {path}: {answer}");
        let requests = origin.take_requests();
        ensure!(requests.len() == asked, "{method} {path}: {requests:?}");
    }
    let records = agent.wait_for_records(8)?;
    ensure!(records.iter().all(|record| record.text("outcome") == "upgraded"), "{records:?}");
    Ok(())
}
