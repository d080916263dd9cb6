//! A steady load over keep-alive connections, until standard input is closed. It lets go of a connection only if the server
//! has said so (`Connection: close`): whatever else ends one has lost a request, and is counted.
//!
//! Prints `started` once every connection has had a response, and in the end a line of JSON.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Barrier, Notify},
    task::{JoinSet, LocalSet},
    time::{sleep_until, timeout},
};

#[derive(Parser)]
#[command(about = "A steady load over keep-alive connections")]
struct Options {
    /// Where to. Connections go to each in turn.
    #[arg(required = true)]
    addresses: Vec<SocketAddr>,
    /// The Host header.
    #[arg(long, default_value = "edition.cnn.com")]
    host: String,
    /// The target.
    #[arg(long, default_value = "/politics")]
    path: String,
    /// Connections at a time.
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Requests per second over all connections.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Seconds after which it ends in any case.
    #[arg(long, default_value_t = 120)]
    limit: u64,
}

/// How long one response may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Failures that are told one by one.
const TOLD: usize = 20;

/// What one client, or all of them, went through.
#[derive(Default)]
struct Report {
    connects: usize,
    latencies: Vec<Duration>,
    failed: usize,
    failures: Vec<String>,
}

fn main() -> Result<()> {
    let options = Rc::new(Options::parse());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = LocalSet::new().block_on(&runtime, run(options))?;
    println!("{report}");
    Ok(())
}

async fn run(options: Rc<Options>) -> Result<serde_json::Value> {
    let (end, closed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let notify = closed.clone();
    thread::spawn(move || {
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
        notify.notify_one();
    });
    let started = Rc::new(Barrier::new(options.connections as usize + 1));
    let mut clients = JoinSet::new();
    for number in 0..options.connections {
        clients.spawn_local(client(options.clone(), number, started.clone(), end.clone()));
    }
    started.wait().await;
    println!("started");
    let began = Instant::now();
    timeout(Duration::from_secs(options.limit), closed.notified()).await.ok();
    let mut total = Report::default();
    end.notify_waiters();
    while let Some(report) = clients.join_next().await {
        let report = report.context("a client panicked")?;
        total.connects += report.connects;
        total.failed += report.failed;
        total.latencies.extend(report.latencies);
        total.failures.extend(report.failures);
    }
    let seconds = began.elapsed().as_secs_f64();
    total.latencies.sort_unstable();
    total.failures.truncate(TOLD);
    let quantile = |share: f64| {
        let index = (total.latencies.len() as f64 * share) as usize;
        total.latencies.get(index.min(total.latencies.len().saturating_sub(1))).map_or(0.0, Duration::as_secs_f64) * 1e3
    };
    Ok(json!({
        "requests": total.latencies.len(),
        "failed": total.failed,
        "failures": total.failures,
        "connects": total.connects,
        "seconds": seconds,
        "rate": total.latencies.len() as f64 / seconds,
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
        "max_ms": quantile(1.0),
    }))
}

/// One connection at a time, a request at each tick of its own clock.
async fn client(options: Rc<Options>, number: u32, started: Rc<Barrier>, end: Arc<Notify>) -> Report {
    let address = options.addresses[number as usize % options.addresses.len()];
    let interval = Duration::from_secs(1) * options.connections / options.rate;
    let mut report = Report::default();
    let mut connection = None;
    let mut ended = std::pin::pin!(end.notified());
    ended.as_mut().enable();
    let mut tick = tokio::time::Instant::now() + interval * number / options.connections;
    let mut first = true;
    loop {
        tokio::select! {
            () = sleep_until(tick) => {}
            () = &mut ended => return report,
        }
        let began = Instant::now();
        match timeout(PATIENCE, exchange(&options, address, &mut connection, &mut report.connects)).await {
            Ok(Ok(())) => report.latencies.push(began.elapsed()),
            failure => {
                connection = None;
                report.failed += 1;
                if report.failures.len() < TOLD {
                    let reason = failure.map_or_else(
                        |_| "no response in time".into(),
                        |result| format!("{:#}", result.expect_err("it failed")),
                    );
                    report.failures.push(reason);
                }
            }
        }
        if std::mem::take(&mut first) {
            started.wait().await;
            // What it took to begin is not part of the load.
            report.latencies.clear();
            tick = tokio::time::Instant::now() + interval * number / options.connections;
        }
        // What came late is made up for: the rate stays what was asked for.
        tick += interval;
    }
}

async fn exchange(
    options: &Options,
    address: SocketAddr,
    connection: &mut Option<TcpStream>,
    connects: &mut usize,
) -> Result<()> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            *connects += 1;
            let stream = TcpStream::connect(address).await.context("connect")?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", options.path, options.host);
    stream.write_all(request.as_bytes()).await.context("write")?;
    let mut response = Vec::new();
    let end = loop {
        if let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        let read = stream.read_buf(&mut response).await.context("read")?;
        ensure!(read > 0, "closed after {} bytes of a head", response.len());
    };
    let head = String::from_utf8_lossy(&response[..end]).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200 "), "{head}");
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
    let length: usize = field("content-length").context("no length")?.parse()?;
    while response.len() < end + length {
        let read = stream.read_buf(&mut response).await.context("read")?;
        ensure!(read > 0, "closed after {} of {length} bytes", response.len() - end);
    }
    if response.len() > end + length {
        bail!("more than was announced");
    }
    if field("connection") != Some("close") {
        *connection = Some(stream);
    }
    Ok(())
}
