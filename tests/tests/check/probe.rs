//! `--probe`: what is said of real origins, good and bad, to people and to machines.

mod cases;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
};

use anyhow::{Context, Result, ensure};
use harness::{TestBed, agent::binary, origin::ServerTls, process::Output, raw_server::RawServer, testbed::Families};
use serde_json::Value;

use super::NOBODY;

const SIMPLE: &str = "{mode: SIMPLE}";
const DNS: &str = "resolution: DNS";

/// The pair of resources for one host: `entry` goes into the ServiceEntry's `spec`, `policy` beside the settings for port 80.
fn rule(host: &str, entry: &str, tls: &str, annotations: &str, policy: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: some-hosts}}
spec:
  hosts: ['{host}']
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]
  {entry}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: some-hosts, annotations: {{{annotations}}}}}
spec:
  host: '{host}'
  trafficPolicy:
    portLevelSettings:
    - port: {{number: 80}}
      tls: {tls}
    {policy}
"
    )
}

fn simple(host: &str) -> String {
    rule(host, DNS, SIMPLE, "", "")
}

/// Probes from the node, as nobody.
fn probe(bed: &TestBed, rules: &str, arguments: &[&str]) -> Result<Output> {
    let file = bed.dir().join("rules.yaml");
    fs::write(&file, rules)?;
    let output =
        bed.node_command(binary()?)?.args(["check", "--probe"]).args(arguments).arg(&file).uid(NOBODY).run()?;
    ensure!(output.stderr.is_empty(), "{output:?}");
    Ok(output)
}

/// The same for machines, with the exit code.
fn probe_json(bed: &TestBed, rules: &str, arguments: &[&str]) -> Result<(i32, Value)> {
    let output = probe(bed, rules, &[&["--output", "json"], arguments].concat())?;
    Ok((output.code(), serde_json::from_slice(&output.stdout).with_context(|| output.text())?))
}

/// The code of the only finding; empty if there is none.
fn only_code(report: &Value) -> Result<&str> {
    let findings = report["diagnostics"].as_array().context("no diagnostics")?;
    let codes: Vec<_> = findings.iter().filter_map(|finding| finding["code"].as_str()).collect();
    ensure!(codes.len() <= 1, "{report:#}");
    Ok(codes.first().copied().unwrap_or_default())
}

#[test]
fn a_good_origin_is_shown_with_all_that_tls_agrees_on() -> Result<()> {
    let bed = TestBed::builder("probe-good").host("h2.example").host("h1.example").build()?;
    let identity = bed.pki().server(&["h2.example", "h1.example"])?;
    let tls = ServerTls::new(identity.clone());
    let origin = bed.embedded_origin().tls(&bed.sockets("h2.example", 443), &tls)?;
    let origin = origin.tls(&bed.sockets("h1.example", 443), &tls.http1_only().tls12_only())?.start()?;
    let [v4, v6] = bed.sockets("h2.example", 443);

    let text = probe(&bed, &simple("h2.example"), &["--strict"])?.success()?.text();
    for expected in [
        "probe of h2.example, for http://h2.example:80\n",
        &format!("\n    {v4}: verified\n        TLSv1.3, X25519MLKEM768 (post-quantum), TLS13_AES_"),
        ", ALPN h2\n        CN=h2.example, issued by CN=egress test authority: trusted\n            for h2.example, h1.example\n",
        "\n            pin sha256/",
        &format!("\n    {v6}: verified\n"),
        &format!("\n        the certificates of {v4}\n"),
        "\n1 rule, 0 errors, 0 warnings",
    ] {
        ensure!(text.contains(expected), "{expected:?} was expected in:\n{text}");
    }

    let (code, report) =
        probe_json(&bed, &(simple("h2.example") + &simple("h1.example").replace("some", "more")), &[])?;
    ensure!(code == 0 && report["errors"] == 0 && report["warnings"] == 0, "{report:#}");
    let [old, new] = report["probes"].as_array().context("no probes")?.as_slice() else {
        anyhow::bail!("two probes were expected: {report:#}")
    };
    ensure!(new["host"] == "h2.example" && new["server_name"] == "h2.example", "{new:#}");
    ensure!(new["rules"] == serde_json::json!(["http://h2.example:80"]), "{new:#}");
    ensure!(new["location"]["line"] == 18 && new["not_probed"].is_null(), "{new:#}");
    let addresses = new["addresses"].as_array().context("no addresses")?;
    ensure!(addresses.len() == 2, "{new:#}");
    for (found, expected) in addresses.iter().zip([v4, v6]) {
        ensure!(found["address"] == expected.to_string() && found["outcome"] == "verified", "{found:#}");
        ensure!(found["failure"].is_null() && found["client_certificate"] == "not_asked_for", "{found:#}");
        let tls = &found["tls"];
        ensure!(tls["version"] == "TLSv1.3" && tls["alpn"] == "h2", "{tls}");
        ensure!(tls["key_exchange"] == "X25519MLKEM768" && tls["post_quantum"] == true, "{tls}");
        let certificate = &found["certificates"][0];
        ensure!(certificate["subject"] == "CN=h2.example", "{certificate}");
        ensure!(certificate["names"] == serde_json::json!(["h2.example", "h1.example"]), "{certificate}");
        let not_after = certificate["not_after"].as_str().unwrap_or_default();
        ensure!(not_after.contains('T') && not_after.ends_with('Z'), "{certificate}");
        ensure!(certificate["days_left"].as_i64().is_some_and(|days| days > 30), "{certificate}");
    }
    let tls = &old["addresses"][0]["tls"];
    ensure!(old["host"] == "h1.example" && tls["version"] == "TLSv1.2" && tls["alpn"] == "http/1.1", "{old:#}");
    ensure!(tls["post_quantum"] == false, "{tls}");

    // What is printed can be pinned, and nothing else is then accepted.
    let pin = addresses[0]["certificates"][0]["pin"].as_str().context("no pin")?;
    let pinned = rule("h2.example", DNS, SIMPLE, &format!("egress.dev/pins: {pin}"), "");
    ensure!(probe(&bed, &pinned, &["--strict"])?.code() == 0);
    let other = pinned.replace(pin, "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let (code, report) = probe_json(&bed, &other, &[])?;
    let failure = &report["probes"][0]["addresses"][0]["failure"];
    ensure!(code == 1 && failure["cause"] == "pin_mismatch", "{report:#}");
    ensure!(failure["details"].as_str().is_some_and(|text| text.contains(pin)), "{failure}");
    let reported = other.replace("egress.dev/pins:", "egress.dev/pins-mode: report, egress.dev/pins:");
    let (code, report) = probe_json(&bed, &reported, &[])?;
    ensure!((code, only_code(&report)?) == (0, "EG0254"), "{report:#}");

    // Most hosts have addresses of IPv6, and many nodes have none: nothing to warn of.
    bed.node().ip("route del 2001:db8:2::/64\n")?;
    let (code, report) = probe_json(&bed, &simple("h2.example"), &["--strict"])?;
    let [v4, v6] = [0, 1].map(|index| &report["probes"][0]["addresses"][index]);
    ensure!(code == 0 && v4["outcome"] == "verified" && v6["failure"]["cause"] == "unroutable", "{report:#}");

    ensure!(origin.requests().is_empty(), "a probe is no request: {:?}", origin.requests());
    Ok(())
}

#[test]
fn a_client_certificate_is_shown_as_the_rule_has_it() -> Result<()> {
    let bed = TestBed::builder("probe-mutual").host_with("mutual.example", Families::V4).build()?;
    let identity = bed.pki().server(&["mutual.example"])?;
    let tls = ServerTls::new(identity).client_certificates_of(bed.pki().client_ca());
    let _origin = bed.embedded_origin().tls(&bed.sockets("mutual.example", 443), &tls)?.start()?;
    for (client, code, outcome, cause) in [
        (bed.pki().client("legacy")?, 0, "verified", ""),
        (bed.pki().foreign_client("stranger")?, 1, "refused", "client_certificate_refused"),
    ] {
        let [certificate, key] = [client.certificate_file, client.key_file].map(|file| file.display().to_string());
        let mutual = format!("{{mode: MUTUAL, clientCertificate: {certificate}, privateKey: {key}}}");
        let (found_code, report) = probe_json(&bed, &rule("mutual.example", DNS, &mutual, "", ""), &[])?;
        let found = &report["probes"][0]["addresses"][0];
        ensure!(found_code == code && found["outcome"] == outcome, "{report:#}");
        ensure!(found["client_certificate"] == "shown", "{report:#}");
        ensure!(found["failure"]["cause"].as_str().unwrap_or_default() == cause, "{report:#}");
    }
    Ok(())
}

#[test]
fn where_there_is_nothing_to_resolve_hosts_can_be_named() -> Result<()> {
    let host = "www.wild.example";
    let bed = TestBed::builder("probe-wild").host(host).build()?;
    let tls = ServerTls::new(bed.pki().server(&[host])?);
    let _origin = bed.embedded_origin().tls(&bed.sockets(host, 443), &tls)?.start()?;
    let wildcard = rule("*.wild.example", "resolution: NONE", SIMPLE, "", "");
    let exact = rule(host, "resolution: NONE", SIMPLE, "", "");
    for (rules, reason) in [(&wildcard, "a wildcard is no host"), (&exact, "the application's choice")] {
        let (code, report) = probe_json(&bed, rules, &[])?;
        let found = &report["probes"][0];
        ensure!(code == 0 && found["addresses"].as_array().is_some_and(Vec::is_empty), "{report:#}");
        ensure!(found["not_probed"].as_str().is_some_and(|text| text.contains(reason)), "{report:#}");
        ensure!(probe(&bed, rules, &[])?.text().contains("\n    not probed: "));

        let (code, report) = probe_json(&bed, rules, &["--probe-host", host])?;
        let found = &report["probes"][0];
        ensure!(code == 0 && found["host"] == host && found["server_name"] == host, "{report:#}");
        ensure!(found["addresses"].as_array().is_some_and(|found| found.len() == 2), "{report:#}");
        ensure!(found["addresses"][1]["outcome"] == "verified", "{report:#}");
    }
    let [v4, _] = bed.sockets(host, 443);
    let fixed = format!("resolution: STATIC\n  endpoints: [{{address: {}}}]", v4.ip());
    let (code, report) = probe_json(&bed, &rule("*.wild.example", &fixed, SIMPLE, "", ""), &["--probe-host", host])?;
    let found = &report["probes"][0]["addresses"];
    ensure!(code == 0 && found.as_array().is_some_and(|found| found.len() == 1), "{report:#}");
    ensure!(found[0]["address"] == v4.to_string() && found[0]["outcome"] == "verified", "{report:#}");
    let output = probe(&bed, &wildcard, &["--probe-host", "www.other.example"])?;
    ensure!(output.code() == 1 && output.text().contains("(--probe-host www.other.example)"), "{output:?}");
    let usage = bed.node_command(binary()?)?.args(["check", "--probe-host", host, "/nowhere"]).run()?;
    ensure!(usage.code() == 64 && usage.stderr.contains("--probe"), "{usage:?}");
    Ok(())
}

#[test]
fn origins_behind_a_proxy_are_probed_through_it() -> Result<()> {
    let (proxy, broken, host) = ("proxy.example", "broken.example", "far.example");
    let builder = TestBed::builder("probe-tunnel").host_with(proxy, Families::V4).host_with(broken, Families::V4);
    let bed = builder.unlisted_host(host).build()?;
    let tls = ServerTls::new(bed.pki().server(&[proxy])?);
    let origin = bed.sockets(host, 443)[0];
    let _origin = bed.embedded_origin().tls(&[origin], &tls)?.start()?;
    let netns = bed.origin().try_clone_handle()?;
    let _proxy = RawServer::start(bed.origin(), &bed.sockets(proxy, 443)[..1], move |mut client| {
        nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            head.extend(byte);
        }
        if !head.starts_with(b"CONNECT far.example:443 HTTP/1.1\r\n") {
            return Ok(client.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n")?);
        }
        let server = TcpStream::connect(origin)?;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let (mut to, mut from) = (server.try_clone()?, client.try_clone()?);
        let upwards = thread::spawn(move || {
            io::copy(&mut from, &mut to).ok();
            to.shutdown(Shutdown::Write).ok();
        });
        io::copy(&mut &server, &mut client).ok();
        client.shutdown(Shutdown::Both).ok();
        upwards.join().ok();
        Ok(())
    })?;
    let tunnel = "tunnel: {targetHost: far.example, targetPort: 443}";
    let (_, report) = probe_json(&bed, &rule(proxy, DNS, SIMPLE, "", tunnel), &[])?;
    let probe = &report["probes"][0];
    ensure!(probe["tunnel"] == "far.example:443", "{report:#}");
    ensure!(probe["addresses"][0]["outcome"] == "verified" && only_code(&report)?.is_empty(), "{report:#}");

    let (code, report) = probe_json(&bed, &rule(proxy, DNS, SIMPLE, "", &tunnel.replace("far", "near")), &[])?;
    let failure = &report["probes"][0]["addresses"][0]["failure"];
    ensure!((code, only_code(&report)?) == (1, "EG0402"), "{report:#}");
    ensure!(failure["cause"] == "tunnel_refused", "{report:#}");
    ensure!(failure["details"].as_str().is_some_and(|text| text.contains("it answers 403")), "{report:#}");

    // The agent goes on to the next proxy, if one is out of order.
    let [broken, good] = [broken, proxy].map(|host| bed.sockets(host, 443)[0]);
    let _broken = RawServer::start(bed.origin(), &[broken], |mut client| {
        ensure!(client.read(&mut [0; 1024])? > 0, "it is asked for nothing");
        Ok(client.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")?)
    })?;
    let fixed = format!("resolution: STATIC\n  endpoints: [{{address: {}}}, {{address: {}}}]", broken.ip(), good.ip());
    let (code, report) = probe_json(&bed, &rule(proxy, &fixed, SIMPLE, "", tunnel), &[])?;
    let addresses = &report["probes"][0]["addresses"];
    ensure!((code, only_code(&report)?) == (0, "EG0252"), "{report:#}");
    ensure!(addresses[0]["failure"]["cause"] == "tunnel_refused", "{report:#}");
    ensure!(addresses[1]["outcome"] == "verified", "{report:#}");
    Ok(())
}

#[test]
fn a_name_of_two_endpoints_that_nobody_answers_for_does_not_count_as_denied() -> Result<()> {
    let host = "nowhere.example";
    let bed = TestBed::builder("probe-twice").host_with(host, Families::Neither).build()?;
    let twice =
        "resolution: DNS\n  endpoints: [{address: nowhere.example}, {address: nowhere.example, ports: {http: 8443}}]";
    let (code, report) = probe_json(&bed, &rule(host, twice, SIMPLE, "", ""), &[])?;
    let unresolved = report["probes"][0]["unresolved"].as_array().context("no names")?;
    ensure!(code == 1 && unresolved.len() == 1, "{report:#}");
    ensure!(!unresolved[0].as_str().unwrap_or_default().contains("does not exist"), "{report:#}");
    Ok(())
}
