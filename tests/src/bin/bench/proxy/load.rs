//! The client: a process of its own that makes requests, and prints what they took as a line of JSON.
//!
//! One thread and one epoll, as it shares a processor with the origin and must not be what limits the proxy. It also reads
//! the CPU time of the processes under test, right where the measured requests begin and end. Whatever is not a complete
//! response with status 200 ends it: a figure with failures in it means nothing.
//!
//! - [`connection`]: one connection, and the response on it.
//! - [`engine`]: all of them, and when requests are made.
//! - [`tally`]: what comes out.

mod connection;
mod engine;
mod tally;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;

use self::{
    connection::Destination,
    engine::{Engine, Limit},
};
use super::usage::{Cpu, Memory, machine};

/// One run of the client.
#[derive(Args)]
pub(crate) struct Options {
    /// Where connections go
    #[arg(long)]
    to: SocketAddr,
    /// The Host header, and the server's name
    #[arg(long)]
    host: String,
    #[arg(long, default_value = "/1k")]
    path: String,
    /// Speak TLS, and trust this authority
    #[arg(long)]
    tls: Option<PathBuf>,
    /// Connections at a time
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Make a connection for each request
    #[arg(long)]
    close: bool,
    /// Requests per second, whether they are answered or not; as soon as answers come without it
    #[arg(long)]
    rate: Option<u32>,
    /// Milliseconds before what is measured
    #[arg(long, default_value_t = 0)]
    warm_up: u64,
    /// Milliseconds after which no further request is made
    #[arg(long, default_value_t = 10_000)]
    milliseconds: u64,
    /// Requests after which no further one is made; each connection makes at least one
    #[arg(long, default_value_t = u64::MAX)]
    requests: u64,
    /// The processes under test
    #[arg(long)]
    watch: Vec<u32>,
    /// Processes whose CPU time belongs to the measurement too, such as the origin
    #[arg(long)]
    known: Vec<u32>,
    /// Afterwards, leave connections idle for so many milliseconds, before the memory is read
    #[arg(long)]
    hold: Option<u64>,
    /// Try until the first response comes, and print when that was
    #[arg(long)]
    first: bool,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
        let destination = Destination {
            address: self.to,
            tls: self.tls.as_ref().map(|authority| tls(authority, &self.host)).transpose()?,
            request: self.request(),
            closing: self.close,
        };
        let output = if self.first { first(&destination)? } else { self.measure(&destination)? };
        println!("{output}");
        Ok(())
    }

    fn request(&self) -> Vec<u8> {
        let connection = if self.close { "Connection: close\r\n" } else { "" };
        format!("GET {} HTTP/1.1\r\nHost: {}\r\n{connection}\r\n", self.path, self.host).into_bytes()
    }

    fn measure(&self, destination: &Destination) -> Result<serde_json::Value> {
        let mut engine = Engine::new(destination, self.connections)?;
        if self.warm_up > 0 {
            // As many as are measured at most: requests may be large.
            let limit = Limit { requests: self.requests, time: Duration::from_millis(self.warm_up) };
            engine.drive(limit, self.rate).context("before the measurement")?;
        }
        let known: Vec<u32> = self.known.iter().chain(&self.watch).copied().chain([std::process::id()]).collect();
        let (cpu, known_before, machine_before) = (Cpu::of(&self.watch)?, Cpu::of(&known)?, machine()?);
        let began = Instant::now();
        let limit = Limit { requests: self.requests, time: Duration::from_millis(self.milliseconds) };
        let mut tally = engine.drive(limit, self.rate)?;
        let elapsed = began.elapsed();
        let cpu = Cpu::of(&self.watch)?.since(cpu);
        let known = Cpu::of(&known)?.since(known_before);
        let others = machine()?.saturating_sub(machine_before).saturating_sub(known.total);

        if let Some(milliseconds) = self.hold {
            engine.hold(Duration::from_millis(milliseconds))?;
        }
        let memory = Memory::of(&self.watch)?;
        let requests = tally.requests();
        ensure!(requests > 0, "no request was made");
        Ok(json!({
            "requests": requests,
            "bytes": tally.bytes,
            "seconds": elapsed.as_secs_f64(),
            "p50_us": tally.quantile(0.5),
            "p99_us": tally.quantile(0.99),
            "p999_us": tally.quantile(0.999),
            "max_us": tally.quantile(1.0),
            "cpu_us": cpu.total.as_secs_f64() * 1e6,
            "system_us": cpu.system.as_secs_f64() * 1e6,
            "others_seconds": others.as_secs_f64(),
            "resident": memory.resident,
            "proportional": memory.proportional,
        }))
    }
}

/// Connects until a response comes.
fn first(destination: &Destination) -> Result<serde_json::Value> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let deadline = Instant::now() + PATIENCE;
    println!("ready");
    loop {
        match Engine::new(destination, 1)?.drive(Limit { requests: 1, time: PATIENCE }, None) {
            Ok(_) => {
                let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
                return Ok(json!({"first": now.as_secs_f64()}));
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            // It shares no processor with what it waits for, so it need not wait.
            Err(_) => {}
        }
    }
}

/// A client that verifies, and resumes sessions.
fn tls(authority: &PathBuf, host: &str) -> Result<connection::Tls> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority)? {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(connection::Tls { config: Arc::new(config), name: host.to_owned().try_into().context("the server's name")? })
}
