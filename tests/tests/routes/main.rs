//! What routes, subsets, pools, balancers, tunnels and annotations make of requests.

mod adjustments;
mod choices;
mod early;
mod exceptions;
mod failover;
mod limits;
mod matching;
mod names;
mod pools;
mod times;
mod tunnels;
mod warm;

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigDir},
    clients::CurlResult,
    netns::Netns,
    origin::{Origin, Reply, Request, ServerTls},
    process::{Command, Running},
    wait::{PATIENCE, wait_until},
};
use tokio::sync::watch;

const HOST: &str = "edition.cnn.com";
const URL: &str = "http://edition.cnn.com";
/// Another place that serves the host, and a host of its own.
const SECOND: &str = "second.example";

/// A ServiceEntry for port 80 of a host: `spec` is the rest of it.
fn entry(host: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {host}}}
spec:
  hosts: [{host}]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]
  {spec}
"
    )
}

/// A DestinationRule that originates TLS; `policy` comes beside the `tls` in its `trafficPolicy`, `spec` beside that.
fn destination(host: &str, annotations: &str, policy: &str, spec: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {host}, annotations: {{{annotations}}}}}
spec:
  host: {host}
  trafficPolicy:
    tls: {{mode: SIMPLE}}
    {policy}
  {spec}
"
    )
}

/// HOST with these settings in its `connectionPool`, SECOND without any.
fn pooled(settings: &str) -> String {
    let limited = destination(HOST, "", &format!("connectionPool: {{{settings}}}"), "");
    entry(HOST, "resolution: DNS") + &limited + &entry(SECOND, "resolution: DNS") + &destination(SECOND, "", "", "")
}

/// A VirtualService for HOST with these routes, a list in YAML.
fn service(routes: &str) -> String {
    format!(
        "---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {HOST}}}
spec:
  hosts: [{HOST}]
  http:
{routes}"
    )
}

/// Both hosts with TLS, each by its own name.
fn both() -> String {
    let pair = |host| entry(host, "resolution: DNS") + &destination(host, "", "", "");
    pair(HOST) + &pair(SECOND)
}

fn bed(name: &str) -> Result<TestBed> {
    TestBed::builder(name).host(HOST).host(SECOND).build()
}

fn agent<'bed>(bed: &'bed TestBed, rules: &str) -> Result<(Agent<'bed>, ConfigDir)> {
    let config = bed.config_dir()?;
    config.write("rules.yaml", rules)?;
    Ok((bed.agent(&config)?, config))
}

/// With one worker: connections do not depend on who was less busy.
fn agent_with_one_worker<'bed>(bed: &'bed TestBed, rules: &str) -> Result<(Agent<'bed>, ConfigDir)> {
    let config = bed.config_dir()?;
    config.write("rules.yaml", rules)?;
    Ok((Agent::start(bed, &AgentOptions::new(config.path()).args(&["--workers", "1"]))?, config))
}

/// Both places, over TLS, each with a certificate for both names.
fn origin(bed: &TestBed, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Result<Origin> {
    start(bed, &ServerTls::new(bed.pki().server(&[HOST, SECOND])?), handler)
}

/// The same without HTTP/2.
fn origin_http1(bed: &TestBed, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Result<Origin> {
    start(bed, &ServerTls::new(bed.pki().server(&[HOST, SECOND])?).http1_only(), handler)
}

fn start(
    bed: &TestBed,
    tls: &ServerTls,
    handler: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Result<Origin> {
    let addresses = [bed.sockets(HOST, 443), bed.sockets(SECOND, 443)].concat();
    bed.embedded_origin().tls(&addresses, tls)?.handler(handler).start()
}

/// What answers when the test says so.
fn patient(released: watch::Receiver<bool>) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    move |request| Reply::Later(released.clone(), Box::new(echo(request)))
}

/// Says which host and target it was asked for.
fn echo(request: &Request) -> Reply {
    Reply::ok(format!("{} {} {}\n", request.method, request.host, request.target))
}

/// A request whose response is looked at by its status and its text.
fn get(bed: &TestBed, target: &str, arguments: &[&str]) -> Result<(u16, String, CurlResult)> {
    let result = bed.curl(&format!("{URL}{target}"))?.args(arguments).run()?;
    let [head] = result.responses.as_slice() else { anyhow::bail!("{target} {arguments:?}: {result:?}") };
    Ok((head.status, String::from_utf8_lossy(&result.body).into_owned(), result.clone()))
}

fn in_pod(bed: &TestBed, pod: &Netns, program: &str) -> Result<Command> {
    bed.pod_command(pod, program)?.in_cgroup(bed.cgroup())
}

fn ask_in(bed: &TestBed, pod: &Netns) -> Result<Command> {
    Ok(in_pod(bed, pod, "curl")?.args(["-q", "-sS", "-4", "--max-time", "15", URL]))
}

/// Waits until the agent serves a pod, which exists for as long as the process that this gives.
fn serve(bed: &TestBed, pod: &Netns) -> Result<Running> {
    let sandbox = in_pod(bed, pod, "sleep")?.arg("infinity").spawn()?;
    // Until it has noticed the pod, connects are refused there.
    wait_until("the other pod to be served", PATIENCE, || {
        ask_in(bed, pod).and_then(Command::run).is_ok_and(|output| output.code() == 0)
    })?;
    Ok(sandbox)
}

/// Counts what an origin is asked for.
#[derive(Clone, Debug, Default)]
struct Counter(Arc<Mutex<usize>>);

impl Counter {
    /// The number of this one, from 1.
    fn next(&self) -> usize {
        let mut count = self.0.lock().expect("no test panics with it");
        *count += 1;
        *count
    }
}

/// How many requests each of the two places had.
fn shares(bed: &TestBed, origin: &Origin) -> Result<(usize, usize)> {
    let requests = origin.take_requests();
    let first = bed.addresses(HOST).both();
    let of_first = requests.iter().filter(|request| first.contains(&request.server.ip())).count();
    ensure!(requests.iter().all(|request| request.tls.is_some()), "in clear");
    Ok((of_first, requests.len() - of_first))
}

/// The one record of a request to a target.
fn outcome_of(agent: &Agent<'_>, path: &str) -> Result<String> {
    let record = agent.records().into_iter().find(|record| record.text("path") == path);
    Ok(record.with_context(|| format!("no record of {path}"))?.text("outcome"))
}
