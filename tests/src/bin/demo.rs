//! The demonstration: the page "Egress TLS Origination" step by step, with each command and its result.
//!
//! It runs in network namespaces of its own and leaves nothing behind. It checks what it shows, and exits with 1 when
//! something is not as it should be.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use harness::{
    TestBed,
    agent::{Agent, ConfigDir},
    capture::Trace,
    clients::Head,
    origin::{Origin, Request, ServerTls},
};

const HOST: &str = "edition.cnn.com";
const HTTP: &str = "http://edition.cnn.com/politics";
const HTTPS: &str = "https://edition.cnn.com/politics";

const SERVICE_ENTRY: &str = include_str!("../../seed/service-entry.yaml");
const TLS_ORIGINATION: &str = include_str!("../../seed/tls-origination.yaml");
/// As `kubectl apply` replaces a resource of the same name, both go into this file.
const FILE: &str = "edition-cnn-com.yaml";

/// Walks through the page "Egress TLS Origination".
#[derive(Parser)]
struct Options {
    /// How long a packet takes between the pod and the origin, in milliseconds.
    #[arg(long, default_value_t = 10)]
    delay: u64,
    /// How many requests the medians in the table are of.
    #[arg(long, default_value_t = 15)]
    runs: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("Egress TLS origination, as on the page of that name: same rules, same commands.");
    println!("A pod, a node with one agent, and an origin, each in a network namespace of its own;");
    println!("a packet takes {} ms from the pod to the origin.", options.delay);

    let bed = TestBed::builder("demo").host(HOST).delay(Duration::from_millis(options.delay)).build()?;
    let origin = bed
        .embedded_origin()
        .clear(&bed.sockets(HOST, 80))
        .tls(&bed.sockets(HOST, 443), &ServerTls::new(bed.pki().server(&[HOST])?))?
        .start()?;
    let config = bed.config_dir()?;
    let agent = bed.agent(&config)?;
    let mut walk = Walk { bed: &bed, origin: &origin, config: &config, agent, runs: options.runs };
    let rows = walk.all().with_context(|| "the demonstration stops here")?;
    print_table(&rows);
    Ok(())
}

struct Walk<'bed> {
    bed: &'bed TestBed,
    origin: &'bed Origin,
    config: &'bed ConfigDir,
    agent: Agent<'bed>,
    runs: usize,
}

impl Walk<'_> {
    fn all(&mut self) -> Result<Vec<Row>> {
        let pid = self.agent.process().pid();

        title("1. No rules");
        self.check_redirected()?;
        let before = self.measure("http://, no rules: redirected", HTTP)?;
        let https = self.measure("https:// by the application itself", HTTPS)?;

        title("2. A ServiceEntry alone");
        self.apply(SERVICE_ENTRY)?;
        self.check_redirected()?;

        title("3. A ServiceEntry with target port 443, and a DestinationRule");
        self.apply(TLS_ORIGINATION)?;
        let first = self.check_upgraded()?.row("http://, with the rules: first request");
        let after = self.measure("http://, with the rules: from then on", HTTP)?;

        title("4. Applications that use HTTPS");
        self.check_https()?;

        title("5. Cleanup");
        println!("$ rm config/{FILE}");
        let rules = self.agent.apply(|| self.config.remove(FILE))?;
        check(rules == 0, "no rule is left")?;
        self.check_redirected()?;
        let same = self.agent.process().pid() == pid && self.agent.process().is_running();
        check(same, "the agent was never restarted")?;
        Ok(vec![before, https, first, after])
    }

    fn apply(&mut self, yaml: &str) -> Result<()> {
        println!("$ cat > config/{FILE} <<EOF\n{yaml}EOF");
        self.agent.apply(|| self.config.write(FILE, yaml))?;
        println!();
        Ok(())
    }

    fn check_redirected(&self) -> Result<()> {
        let seen = self.show(HTTP)?;
        let statuses = seen.heads.iter().map(|head| (head.version.as_str(), head.status)).collect::<Vec<_>>();
        check(statuses == [("HTTP/1.1", 301), ("HTTP/2", 200)], "the answer is a redirect, and then the page")?;
        let in_clear = seen.requests.iter().filter(|request| request.tls.is_none()).count();
        check(seen.requests.len() == 2 && in_clear == 1, "the origin saw two requests, one of them in clear")?;
        check(seen.trace.contains(b"GET /politics HTTP/1.1"), "an eavesdropper reads the path /politics")
    }

    fn check_upgraded(&self) -> Result<Seen> {
        let seen = self.show(HTTP)?;
        let statuses = seen.heads.iter().map(|head| (head.version.as_str(), head.status)).collect::<Vec<_>>();
        check(statuses == [("HTTP/1.1", 200)], "200 is the first and only response")?;
        let [request] = seen.requests.as_slice() else { bail!("the origin saw {} requests", seen.requests.len()) };
        let sni = request.tls.as_ref().and_then(|tls| tls.sni.as_deref());
        check(sni == Some(HOST), "the origin saw one request, over TLS, with the SNI edition.cnn.com")?;
        check(request.target == "/politics" && request.host == HOST, "it was for /politics of edition.cnn.com")?;
        check(!seen.trace.contains(b"politics"), "an eavesdropper finds no trace of the path")?;
        check(seen.trace.packets_of_port(80) == 0, "not one packet went to or came from port 80")?;
        Ok(seen)
    }

    fn check_https(&self) -> Result<()> {
        let seen = self.show(HTTPS)?;
        let statuses = seen.heads.iter().map(|head| (head.version.as_str(), head.status)).collect::<Vec<_>>();
        check(statuses == [("HTTP/2", 200)], "they work as before, end to end")
    }

    /// Runs curl as the page does, and prints the command and its result.
    fn show(&self, url: &str) -> Result<Seen> {
        println!("$ curl -sSL -o /dev/null -D - {url}");
        let seen = self.get(url)?;
        for head in &seen.heads {
            print!("{}", head.text.replace('\r', ""));
        }
        Ok(seen)
    }

    fn get(&self, url: &str) -> Result<Seen> {
        self.origin.take_requests();
        let capture = self.bed.capture()?;
        // Besides what is shown: no .curlrc, and the time to standard error.
        let output = self
            .bed
            .client_command("curl")?
            .args(["-q", "-sSL", "-o", "/dev/null", "-D", "-", "-w", "%{stderr}%{time_total}", url])
            .run()?
            .success()?;
        let seconds = output.stderr.trim().parse::<f64>().context("curl's time")?;
        let heads = output
            .text()
            .split_inclusive("\r\n\r\n")
            .map(|head| Head::parse(head.as_bytes()))
            .collect::<Result<Vec<_>>>()?;
        Ok(Seen { heads, requests: self.origin.take_requests(), trace: capture.stop()?, seconds })
    }

    fn measure(&self, name: &'static str, url: &str) -> Result<Row> {
        let mut rows = (0..self.runs.max(1)).map(|_| Ok(self.get(url)?.row(name))).collect::<Result<Vec<Row>>>()?;
        rows.sort_by_key(|row| row.round_trips);
        let round_trips = rows[rows.len() / 2].round_trips;
        rows.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let median = &rows[rows.len() / 2];
        Ok(Row { name, requests: median.requests, round_trips, seconds: median.seconds })
    }
}

/// One call of curl, as seen from everywhere.
struct Seen {
    heads: Vec<Head>,
    requests: Vec<Request>,
    trace: Trace,
    seconds: f64,
}

impl Seen {
    fn row(&self, name: &'static str) -> Row {
        let round_trips = self.trace.round_trips();
        Row { name, requests: self.requests.len(), round_trips, seconds: self.seconds }
    }
}

struct Row {
    name: &'static str,
    requests: usize,
    round_trips: usize,
    seconds: f64,
}

fn title(text: &str) {
    println!("\n{text}\n{}\n", "-".repeat(text.len()));
}

fn check(holds: bool, expectation: &str) -> Result<()> {
    if !holds {
        bail!("expected, and not so: {expectation}");
    }
    println!("  ok: {expectation}");
    Ok(())
}

fn print_table(rows: &[Row]) {
    title("What it costs, and what it saves");
    println!("{:40} {:>9} {:>12} {:>10}", "", "requests", "round trips", "time");
    for Row { name, requests, round_trips, seconds } in rows {
        println!("{name:40} {requests:>9} {round_trips:>12} {:>7.1} ms", seconds * 1000.0);
    }
}
