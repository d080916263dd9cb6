//! Requests at a steady rate.

use anyhow::{Context as _, Result, ensure};
use harness::{TestBed, process::Running, wait::PATIENCE};
use serde_json::Value;

use super::HOST;

/// Connections that the requests share.
const CONNECTIONS: &str = "8";

pub(super) struct Load<'a> {
    pub(super) bed: &'a TestBed,
    pub(super) rate: u32,
    pub(super) seconds: u64,
    /// Of the agent.
    pub(super) pid: u32,
}

/// What requests took, in microseconds.
#[derive(Clone, Copy)]
pub(super) struct Latencies {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    /// Of all of the agent's threads, for each request.
    pub(super) cpu: f64,
}

impl Load<'_> {
    /// Makes requests, and does something else over and over until they have been answered.
    pub(super) fn run(&self, mut meanwhile: impl FnMut() -> Result<()>) -> Result<Latencies> {
        let arguments = [
            ("--rate", self.rate.to_string()),
            ("--connections", CONNECTIONS.to_owned()),
            ("--warm-up", "500".to_owned()),
            ("--milliseconds", (1000 * self.seconds).to_string()),
            ("--watch", self.pid.to_string()),
        ];
        let mut client = client(self.bed, &arguments, &[])?;
        while client.is_running() {
            meanwhile()?;
        }
        let result = result(&mut client)?;
        let number = |name: &str| result[name].as_f64().with_context(|| format!("no {name}: {result}"));
        Ok(Latencies {
            p50: number("p50_us")?,
            p99: number("p99_us")?,
            max: number("max_us")?,
            cpu: number("cpu_us")? / number("requests")?,
        })
    }
}

/// Makes connections with a request each.
pub(super) fn connects(bed: &TestBed) -> Result<()> {
    result(&mut client(bed, &[("--requests", "500".to_owned())], &["--close"])?).map(drop)
}

fn client(bed: &TestBed, options: &[(&str, String)], flags: &[&str]) -> Result<Running> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let to = bed.sockets(HOST, 80)[0].to_string();
    let mut command = bed.client_command(own)?.args(["proxy-load", "--to", &to, "--host", HOST, "--path", "/1k"]);
    for (name, value) in options {
        command = command.args([*name, value]);
    }
    command.args(flags).spawn()
}

fn result(client: &mut Running) -> Result<Value> {
    let status = client.wait(6 * PATIENCE)?;
    let (output, errors) = (client.stdout(), client.stderr().join("\n"));
    ensure!(status.success(), "the client failed: {errors}");
    serde_json::from_str(&output).with_context(|| format!("the client printed {output:?}: {errors}"))
}
