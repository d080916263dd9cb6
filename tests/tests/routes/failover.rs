//! What becomes of a request where one of several places fails.

use std::fs;

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    origin::{Reply, ServerTls},
    process::Running,
    proxy_status::ProxyStatus,
    wait::{PATIENCE, wait_until},
};
use tokio::sync::watch;

use super::{
    HOST, URL, agent, agent_with_one_worker, bed, both, destination, echo, entry, get, origin, origin_http1, pooled,
    service, shares,
};

/// In the namespace of origins nobody has this address, nor says anything about it.
const SILENT: &str = "198.51.100.250";
const CLIENT: &str = env!("CARGO_BIN_EXE_client");

/// The host at a place where connections come to nothing, and at one that serves it.
fn at(bed: &TestBed, first: &str) -> String {
    let second = bed.addresses(super::SECOND).v4;
    entry(HOST, &format!("resolution: STATIC\n  endpoints: [{first}, {{address: {second}}}]"))
}

/// A place that refuses connections.
fn refusing(bed: &TestBed) -> String {
    format!("{{address: {}, ports: {{http: 444}}}}", bed.addresses(HOST).v4)
}

fn retries(settings: &str) -> String {
    service(&format!("  - retries: {{{settings}}}\n    route: [{{destination: {{host: {HOST}}}}}]\n"))
}

#[test]
fn addresses_that_may_be_left_out_are_tried_in_turn_all_the_same() -> Result<()> {
    let bed = bed("failover-outlier")?;
    let origin = origin(&bed, echo)?;
    let policy = "outlierDetection: {consecutive5xxErrors: 5}";
    let (_agent, _config) = agent(&bed, &(at(&bed, &refusing(&bed)) + &destination(HOST, "", policy, "")))?;
    for _ in 0..3 {
        let (status, _, result) = get(&bed, "/", &[])?;
        ensure!(status == 200, "{result:?}");
    }
    ensure!(shares(&bed, &origin)? == (0, 3));
    Ok(())
}

#[test]
fn a_retry_goes_to_another_address() -> Result<()> {
    const COUNT: usize = 20;
    let bed = bed("failover-retries")?;
    let origin = origin(&bed, echo)?;
    // By chance alone all would go well once in 300 runs.
    let rules = at(&bed, &refusing(&bed))
        + &destination(HOST, "", "loadBalancer: {simple: RANDOM}", "")
        + &retries("attempts: 1, retryOn: connect-failure, backoff: 1ms");
    let (agent, _config) = agent(&bed, &rules)?;
    for _ in 0..COUNT {
        let (status, _, result) = get(&bed, "/", &[])?;
        ensure!(status == 200, "{result:?}");
    }
    ensure!(shares(&bed, &origin)? == (0, COUNT));
    ensure!(agent.records().iter().any(|record| record.text("retries") == "1"));
    Ok(())
}

#[test]
fn what_was_not_sent_in_time_is_sent_elsewhere_whatever_it_is() -> Result<()> {
    let bed = bed("failover-unsent")?;
    let origin = origin(&bed, echo)?;
    let rules = at(&bed, &format!("{{address: {SILENT}}}"))
        + &destination(HOST, "", "outlierDetection: {consecutive5xxErrors: 5}", "")
        + &retries("attempts: 1, perTryTimeout: 500ms, retryOn: \"5xx\", backoff: 1ms");
    let (agent, _config) = agent_with_one_worker(&bed, &rules)?;
    // By chance alone one is never asked once in a million runs.
    const COUNT: usize = 20;
    for _ in 0..COUNT {
        let (status, _, result) = get(&bed, "/", &["-d", "pay"])?;
        ensure!(status == 200 && shares(&bed, &origin)? == (0, 1), "{result:?}");
    }
    // Then it is known who does not answer, and forgotten only after seconds, be it on a slow machine.
    let records = agent.wait_for_records(COUNT)?;
    let retried: Vec<_> = records.iter().map(|record| record.text("retries")).filter(|text| !text.is_empty()).collect();
    ensure!((1..=4).contains(&retried.len()) && retried.iter().all(|text| text == "1"), "{retried:?}");
    Ok(())
}

#[test]
fn a_record_says_nothing_of_earlier_tries_connections() -> Result<()> {
    let bed = bed("failover-record")?;
    let _origin = origin(&bed, |_| Reply::status(503, &[], "not now\n"))?;
    let second = bed.addresses(super::SECOND).v4;
    let rules =
        entry(HOST, &format!("resolution: STATIC\n  endpoints: [{{address: {second}}}, {{address: {SILENT}}}]"))
            + &destination(HOST, "", "loadBalancer: {simple: ROUND_ROBIN}", "")
            + &retries("attempts: 1, perTryTimeout: 500ms, retryOn: \"5xx\", backoff: 1ms");
    let (agent, _config) = agent(&bed, &rules)?;
    ensure!(get(&bed, "/", &["-4"])?.0 == 504);
    let record = &agent.wait_for_records(1)?[0];
    ensure!(record.text("retries") == "1" && record.text("upstream").is_empty(), "{record:?}");
    Ok(())
}

#[test]
fn what_is_sent_again_is_nobody_s_turn() -> Result<()> {
    let bed = bed("failover-turns")?;
    let origin = origin(&bed, echo)?;
    let rules = at(&bed, &refusing(&bed))
        + &destination(HOST, "", "loadBalancer: {simple: ROUND_ROBIN}", "")
        + &retries("attempts: 1, retryOn: connect-failure, backoff: 1ms");
    let (agent, _config) = agent(&bed, &rules)?;
    for _ in 0..6 {
        ensure!(get(&bed, "/", &[])?.0 == 200);
    }
    ensure!(shares(&bed, &origin)? == (0, 6));
    let retried: Vec<_> = agent.wait_for_records(6)?.iter().map(|record| record.text("retries")).collect();
    ensure!(retried.iter().filter(|text| *text == "1").count() == 3, "{retried:?}");
    Ok(())
}

#[test]
fn a_host_all_of_whose_addresses_are_left_out_is_unavailable() -> Result<()> {
    let bed = bed("failover-all-out")?;
    let origin = origin(&bed, |_| Reply::status(503, &[], "not now\n"))?;
    let policy = "outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 100}";
    let first = format!("{{address: {}}}", bed.addresses(HOST).v4);
    let (agent, _config) = agent(&bed, &(at(&bed, &first) + &destination(HOST, "", policy, "")))?;
    for _ in 0..2 {
        ensure!(get(&bed, "/", &[])?.1 == "not now\n");
    }
    let (status, body, result) = get(&bed, "/", &[])?;
    ensure!(status == 503 && body.contains("all 2 addresses are left out by outlierDetection"), "{result:?}");
    let reason = ProxyStatus::parse(result.responses[0].header("proxy-status").unwrap_or_default())?;
    ensure!(reason.get("error") == "destination_unavailable", "{reason:?}");
    ensure!(agent.wait_for_records(3)?[2].text("cause") == "left_out" && shares(&bed, &origin)? == (1, 1));
    Ok(())
}

/// What the node has too little of says nothing of the origin.
#[test]
fn that_local_ports_run_out_is_no_address_s_failure() -> Result<()> {
    let bed = bed("failover-ports")?;
    let (release, released) = watch::channel(false);
    let origin = origin_http1(&bed, move |request| match request.target.as_str() {
        "/held" => Reply::Later(released.clone(), Box::new(echo(request))),
        _ => echo(request),
    })?;
    let policy = "outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 100}";
    let first = bed.addresses(HOST).v4;
    let rules = entry(HOST, &format!("resolution: STATIC\n  endpoints: [{{address: {first}}}]"))
        + &destination(HOST, "", policy, "");
    let (agent, _config) = agent_with_one_worker(&bed, &rules)?;
    // Of each kind of number there is one, and the clients bring their own.
    bed.client().sysctl("net/ipv4/ip_local_port_range", "50000 50001")?;
    let own = ["--local-port", "40000-40999"];
    let held = |count| -> Result<Running> {
        let arguments = ["-q", "-sS", "--local-port", "40000-40999"];
        let client = bed.client_command("curl")?.args(arguments).arg(format!("{URL}/held")).spawn()?;
        wait_until("the request", PATIENCE, || origin.requests().len() == count)?;
        Ok(client)
    };
    let mut clients = [held(1)?, held(2)?];
    for _ in 0..2 {
        let (status, body, result) = get(&bed, "/", &own)?;
        ensure!(status == 503 && body.contains("Cannot assign requested address"), "{result:?}");
        let reason = ProxyStatus::parse(result.responses[0].header("proxy-status").unwrap_or_default())?;
        ensure!(reason.get("error") == "proxy_internal_error", "{reason:?}");
    }
    release.send(true)?;
    for client in &mut clients {
        ensure!(client.wait(PATIENCE)?.success());
    }
    ensure!(get(&bed, "/", &own)?.0 == 200, "{}", agent.log_text());
    let causes: Vec<_> = agent.wait_for_records(5)?.iter().map(|record| record.text("cause")).collect();
    ensure!(causes.iter().filter(|cause| *cause == "out_of_resources").count() == 2, "{causes:?}");
    Ok(())
}

#[test]
fn that_a_socket_cannot_be_marked_is_no_address_s_failure() -> Result<()> {
    let bed = bed("failover-marks")?;
    let _origin = origin_http1(&bed, echo)?;
    let policy = "outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 100}";
    let first = bed.addresses(HOST).v4;
    let rules = entry(HOST, &format!("resolution: STATIC\n  endpoints: [{{address: {first}}}]"))
        + &destination(HOST, "", policy, "");
    let (agent, _config) = agent_with_one_worker(&bed, &rules)?;
    let arguments = ["hold", &bed.sockets(HOST, 80)[0].to_string(), "--host", HOST];
    let client = bed.client_command(CLIENT)?.args(arguments).spawn()?;
    client.wait_for_output("connected\n")?;
    // What sockets may keep beside their content, of which the mark is.
    bed.client().sysctl("net/core/optmem_max", "1")?;
    client.write_stdin(b"\n")?;
    client.wait_for_output("Cannot allocate memory")?;
    bed.client().sysctl("net/core/optmem_max", "131072")?;
    ensure!(get(&bed, "/", &[])?.0 == 200, "{}", agent.log_text());
    ensure!(agent.wait_for_records(2)?[0].text("cause") == "out_of_resources", "{}", agent.log_text());
    Ok(())
}

#[test]
fn that_a_client_is_slow_is_not_the_address_s_failure() -> Result<()> {
    let bed = bed("failover-slow")?;
    let _origin = origin(&bed, echo)?;
    let policy = "outlierDetection: {consecutiveGatewayErrors: 2, consecutive5xxErrors: 2, maxEjectionPercent: 100}";
    let routes = format!("  - timeout: 300ms\n    route: [{{destination: {{host: {HOST}}}}}]\n");
    let rules = entry(HOST, "resolution: DNS") + &destination(HOST, "", policy, "") + &service(&routes);
    let (agent, _config) = agent(&bed, &rules)?;
    for _ in 0..4 {
        let url = format!("http://{HOST}/");
        // Its standard input is open, and nothing comes of it.
        let arguments = ["-q", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect:", "-T", ".", &url];
        bed.client_command("curl")?.args(arguments).spawn()?.wait_for_output("504")?;
    }
    ensure!(get(&bed, "/", &[])?.0 == 200);
    ensure!(!agent.log_text().contains("is left out"), "{}", agent.log_text());
    Ok(())
}

#[test]
fn a_response_that_is_not_taken_costs_no_connection() -> Result<()> {
    let bed = bed("failover-reuse")?;
    let origin = origin_http1(&bed, |request| match request.target.as_str() {
        "/never" => Reply::status(503, &[], "never\n"),
        _ => echo(request),
    })?;
    let rules = both() + &retries("attempts: 4, retryOn: \"5xx\", backoff: 1ms");
    let (_agent, _config) = agent_with_one_worker(&bed, &rules)?;
    ensure!(get(&bed, "/never", &[])?.0 == 503);
    ensure!(get(&bed, "/", &[])?.0 == 200);
    ensure!(origin.requests().len() == 6 && origin.connections() == 1, "{} connections", origin.connections());
    Ok(())
}

/// Its end cannot be told to an origin that does not read.
#[test]
fn the_place_of_a_connection_that_is_stuck_goes_to_others() -> Result<()> {
    const WINDOW: u32 = 1 << 30;
    let bed = bed("failover-stuck")?;
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    let origin = bed.embedded_origin().tls(&bed.sockets(HOST, 443), &tls)?.frames(|mut frames| async move {
        if frames.connection > 0 {
            frames.greet(100).await?;
            let stream = frames.request().await?;
            frames.answer(stream, b"fine").await?;
            return frames.closed().await;
        }
        frames.greet_with_window(WINDOW).await?;
        frames.widen(0, WINDOW).await?;
        frames.request().await?;
        std::future::pending().await
    });
    let origin = origin.start()?;
    let routes = format!("  - timeout: 4s\n    route: [{{destination: {{host: {HOST}}}}}]\n");
    let rules = pooled("tcp: {maxConnections: 1}") + &service(&routes);
    let (_agent, _config) = agent_with_one_worker(&bed, &rules)?;
    // More than all buffers on the way take.
    let file = bed.dir().join("body");
    fs::write(&file, vec![b'x'; 64 << 20])?;
    let (url, file) = (format!("http://{HOST}/"), file.display().to_string());
    // One of HTTP/1 that leaves is not seen to do so while nothing more is taken of what it sends.
    let arguments = ["-q", "-sS", "--http2-prior-knowledge", "--max-time", "2", "-T", &file, &url];
    ensure!(bed.client_command("curl")?.args(arguments).run()?.code() == 28);
    let served = || get(&bed, "/", &[]).is_ok_and(|(status, ..)| status == 200);
    wait_until("another connection", 2 * PATIENCE, served)?;
    ensure!(origin.connections() == 2, "{}", origin.connections());
    Ok(())
}

/// However many wait for it, and however long.
#[test]
fn a_connection_that_is_not_made_counts_once() -> Result<()> {
    let routes = format!("  - timeout: 500ms\n    route: [{{destination: {{host: {HOST}}}}}]\n");
    for routes in [String::new(), service(&routes)] {
        let bed = bed("failover-once")?;
        let silent = entry(HOST, &format!("resolution: STATIC\n  endpoints: [{{address: {SILENT}}}]"));
        let policy = "connectionPool: {tcp: {connectTimeout: 3s}}
    outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 300s, maxEjectionPercent: 100}";
        let (agent, _config) = agent_with_one_worker(&bed, &(silent + &destination(HOST, "", policy, "") + &routes))?;
        let is_out = || agent.log_text().contains("an address is left out for a while");
        let arguments = ["-q", "-sS", "-4", "-o", "/dev/null", URL];
        let clients = [(); 4].map(|()| bed.client_command("curl")?.args(arguments).spawn());
        for client in clients {
            ensure!(client?.wait(PATIENCE)?.success());
        }
        let records = agent.wait_for_records(4)?;
        ensure!(records.iter().all(|record| record.text("status") == "504") && !is_out(), "{}", agent.log_text());
        wait_until("the address to be left out", PATIENCE, || get(&bed, "/", &["-4"]).is_ok() && is_out())?;
    }
    Ok(())
}

/// What is begun before its request has come fails for others, too.
#[test]
fn a_connection_that_is_begun_early_counts_as_any_other() -> Result<()> {
    let bed = bed("failover-early")?;
    let policy = "outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 100}";
    // Nobody is there.
    let (agent, _config) =
        agent_with_one_worker(&bed, &(entry(HOST, "resolution: DNS") + &destination(HOST, "", policy, "")))?;
    let client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n").as_bytes())?;
    let is_out = || agent.log_text().contains("an address is left out for a while");
    wait_until("the address to be left out", PATIENCE, is_out)
}
