//! TLS with origins: what is verified and how failures show, what the settings of a rule do, and where connections lead.

mod annotations;
mod client_certificates;
mod offers;
mod refused;
mod settings;
mod targets;
mod unreachable;

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigDir, LogLine},
    clients::{CurlResult, Head},
    proxy_status::ProxyStatus,
};

const SIMPLE: &str = "{mode: SIMPLE}";
const DNS: &str = "resolution: DNS";

/// The pair of resources for one host: `entry` goes into the ServiceEntry's `spec`, `tls` is the block for port 80.
fn rule(host: &str, entry: &str, tls: &str) -> String {
    annotated_rule(host, entry, tls, "")
}

/// The same with annotations on the DestinationRule.
fn annotated_rule(host: &str, entry: &str, tls: &str, annotations: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {host}}}
spec:
  hosts: [{host}]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]
  {entry}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {host}, annotations: {{{annotations}}}}}
spec:
  host: {host}
  trafficPolicy:
    portLevelSettings:
    - port: {{number: 80}}
      tls: {tls}
"
    )
}

/// A configuration directory with these rules in one file.
fn configure(bed: &TestBed, rules: &[String]) -> Result<ConfigDir> {
    let config = bed.config_dir()?;
    config.write("rules.yaml", &rules.concat())?;
    Ok(config)
}

/// An agent that trusts other authorities than the test's own.
fn agent_without_test_ca<'bed>(bed: &'bed TestBed, config: &ConfigDir) -> Result<Agent<'bed>> {
    let other = bed.pki().client_ca_file().display().to_string();
    Agent::start(bed, &AgentOptions::new(config.path()).env("SSL_CERT_FILE", &other))
}

/// The one response head of a result, whatever curl thinks of it.
fn only_head(result: &CurlResult) -> Result<&Head> {
    ensure!(result.responses.len() == 1, "one response was expected: {result:?}");
    Ok(&result.responses[0])
}

/// Checks the answer that a client gets from us when the origin fails: status, Proxy-Status, and a text that a person
/// understands. `cause` is what both must name.
fn check_failure(result: &CurlResult, status: u16, error: &str, cause: &str) -> Result<()> {
    let head = only_head(result)?;
    ensure!(head.status == status, "{status} was expected: {result:?}");
    let proxy_status = proxy_status(result)?;
    let found = (proxy_status.proxy.as_str(), proxy_status.get("error"));
    ensure!(found == ("egress", error), "{error} was expected: {proxy_status:?}");
    ensure!(proxy_status.get("details").contains(cause), "the details do not name {cause:?}: {proxy_status:?}");
    ensure!(head.header("content-type") == Some("text/plain; charset=utf-8"), "{head:?}");
    let text = String::from_utf8_lossy(&result.body);
    ensure!(text.contains(cause) && text.len() < 600 && text.ends_with('\n'), "the text: {text}");
    ensure!(head.header("content-length") == Some(&text.len().to_string()), "{head:?}");
    Ok(())
}

/// Our word on a failure.
fn proxy_status(result: &CurlResult) -> Result<ProxyStatus> {
    let head = only_head(result)?;
    ProxyStatus::parse(head.header("proxy-status").with_context(|| format!("no Proxy-Status: {head:?}"))?)
}

/// The only record for a host.
fn record_of(records: &[LogLine], host: &str) -> Result<LogLine> {
    let mut found = records.iter().filter(|record| record.text("host") == host);
    let record = found.next().with_context(|| format!("no record for {host}: {records:?}"))?;
    ensure!(found.next().is_none(), "several records for {host}: {records:?}");
    Ok(record.clone())
}

/// Checks that a request failed for everybody to see: also in the access log.
fn check_failed_record(record: &LogLine, status: u16, cause: &str) -> Result<()> {
    ensure!(record.text("outcome") == "failed", "{record:?}");
    ensure!(record.text("status") == status.to_string(), "{record:?}");
    ensure!(record.text("error").contains(cause), "the error does not name {cause:?}: {record:?}");
    Ok(())
}
