//! The agent under test, as its users run it: a process with files, signals, a log and an admin port.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{sched::CpuSet, sys::signal::Signal};
use serde_json::Value;

use crate::{
    cgroup,
    process::Running,
    testbed::TestBed,
    wait::{PATIENCE, wait_for},
};

mod config;
mod maps;
mod metrics;

pub use config::{ConfigDir, ConfigMap};
pub use metrics::Metrics;

/// How long a drain may take, and a bit.
const END_PATIENCE: Duration = Duration::from_secs(40);

/// How an agent is to be started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    config: PathBuf,
    admin: SocketAddr,
    cgroup: Option<PathBuf>,
    default_scope: bool,
    state_dir: Option<PathBuf>,
    inside: bool,
    wrapper: Vec<String>,
    cpus: Option<CpuSet>,
    log_file: Option<PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl AgentOptions {
    /// With a configuration file or directory.
    pub fn new(config: impl Into<PathBuf>) -> Self {
        let admin = SocketAddr::from(([127, 0, 0, 1], 9901));
        Self {
            config: config.into(),
            admin,
            cgroup: None,
            default_scope: false,
            state_dir: None,
            inside: false,
            wrapper: Vec::new(),
            cpus: None,
            log_file: None,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// With another state directory than the test's: for an agent that others know nothing of.
    #[must_use]
    pub fn state_dir(mut self, path: &Path) -> Self {
        self.state_dir = Some(path.to_owned());
        self
    }

    /// With another admin port: for a second agent on the same node.
    #[must_use]
    pub fn admin_port(mut self, port: u16) -> Self {
        self.admin.set_port(port);
        self
    }

    /// Attached to another cgroup than the test's.
    #[must_use]
    pub fn cgroup(mut self, path: &Path) -> Self {
        self.cgroup = Some(path.to_owned());
        self
    }

    /// Attached to what it finds by itself, on a machine whose cgroups are the test's cgroup and those below it.
    #[must_use]
    pub fn default_scope(mut self) -> Self {
        self.default_scope = true;
        self
    }

    /// As a process of the cgroup that it is attached to: subject to its own programs.
    #[must_use]
    pub fn inside_cgroup(mut self) -> Self {
        self.inside = true;
        self
    }

    /// Started by a program that starts another.
    #[must_use]
    pub fn through(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// With all of its threads on these processors alone.
    #[must_use]
    pub fn cpus(mut self, cpus: CpuSet) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// With its log appended to a file, where a test cannot ask for it: for more requests than one wants to hold in memory.
    #[must_use]
    pub fn log_file(mut self, path: &Path) -> Self {
        self.log_file = Some(path.to_owned());
        self
    }

    /// With further arguments.
    #[must_use]
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A running agent. Killed on drop.
#[derive(Debug)]
pub struct Agent<'bed> {
    bed: &'bed TestBed,
    running: Running,
    admin: SocketAddr,
}

impl<'bed> Agent<'bed> {
    /// Starts an agent and waits until it is ready.
    pub fn start(bed: &'bed TestBed, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::spawn(bed, options)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts an agent without waiting, as for one that must refuse its configuration.
    pub fn spawn(bed: &'bed TestBed, options: &AgentOptions) -> Result<Self> {
        let mut words: Vec<OsString> = options.wrapper.iter().map(OsString::from).collect();
        words.push(binary()?.into());
        let mut command = bed
            .node_command(words.remove(0))?
            .args(words)
            .args(["run", "--log", "json", "--config"])
            .arg(&options.config)
            .args(["--admin", &options.admin.to_string()])
            .arg("--state-dir")
            .arg(options.state_dir.as_ref().unwrap_or(&bed.dir().join("state")))
            .args(&options.arguments);
        if options.default_scope {
            let mut mounts = bed.node_mounts();
            mounts.bind(bed.cgroup().path(), cgroup::mount_point()?);
            command = command.with_mounts(&mounts);
        } else {
            command = command.arg("--cgroup").arg(options.cgroup.as_deref().unwrap_or(bed.cgroup().path()));
        }
        for (name, value) in &options.environment {
            command = command.env(name, value);
        }
        if options.inside {
            command = command.in_cgroup(bed.cgroup())?;
        }
        if let Some(cpus) = options.cpus {
            command = command.cpus(cpus);
        }
        if let Some(path) = &options.log_file {
            command = command.stderr(File::options().create(true).append(true).open(path)?);
        }
        Ok(Self { bed, running: command.spawn()?, admin: options.admin })
    }

    /// Waits until `/readyz` answers 200.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let ready = wait_for("the agent to be ready", PATIENCE, || {
            if self.admin("/readyz").is_ok_and(|(status, _)| status == 200) {
                return Some(true);
            }
            (!self.running.is_running()).then_some(false)
        });
        match ready {
            Ok(true) => Ok(()),
            Ok(false) => bail!("the agent ended:\n{}", self.log_text()),
            Err(error) => Err(error.context(format!("the agent said:\n{}", self.log_text()))),
        }
    }

    /// Starts an agent and waits until it has taken over from the one that runs.
    pub fn take_over(bed: &'bed TestBed, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::spawn(bed, options)?;
        // Until then it is the other agent that answers at the admin port.
        agent.running.wait_for_line("the agent to take over", |line| line.contains("took over from the agent"))?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.running
    }

    /// A GET to the admin port from inside the node: status and body.
    pub fn admin(&self, path: &str) -> Result<(u16, String)> {
        let address = self.admin;
        let (head, body) = self.bed.node().run(|| {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                ensure!(stream.read_line(&mut head)? > 0, "the admin port gives no HTTP response: {head:?}");
            }
            let head = head.to_ascii_lowercase();
            let length = head.split_once("\r\ncontent-length: ").and_then(|(_, rest)| rest.split("\r\n").next());
            let mut body = vec![0; length.context("no length")?.parse()?];
            stream.read_exact(&mut body)?;
            Ok((head, String::from_utf8(body)?))
        })?;
        Ok((head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?, body))
    }

    /// The metrics now.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, body) = self.admin("/metrics")?;
        if status != 200 {
            bail!("/metrics answers {status}: {body}");
        }
        Metrics::parse(&body)
    }

    /// The log so far: the lines that are JSON.
    pub fn log(&self) -> Vec<LogLine> {
        self.running.stderr().iter().filter_map(|line| LogLine::parse(line)).collect()
    }

    /// Everything on standard error so far.
    pub fn log_text(&self) -> String {
        self.running.stderr().join("\n")
    }

    /// The access-log records so far, in the order of their times: each worker writes its own.
    pub fn records(&self) -> Vec<LogLine> {
        let mut records: Vec<_> = self.log().into_iter().filter(LogLine::is_access_record).collect();
        records.sort_by_key(|record| record.text("timestamp"));
        records
    }

    /// Waits until there are `count` access-log records, and fails if there are more.
    pub fn wait_for_records(&self, count: usize) -> Result<Vec<LogLine>> {
        let records = wait_for(&format!("{count} access-log records"), PATIENCE, || {
            Some(self.records()).filter(|records| records.len() >= count)
        })
        .with_context(|| format!("the agent said:\n{}", self.log_text()))?;
        if records.len() > count {
            bail!("{count} records were expected, there are {}: {records:?}", records.len());
        }
        Ok(records)
    }

    /// Makes a change to the configuration, waits until the agent says that it is in effect, and returns how many rules
    /// there are now. The agent says so by the message `policy applied` with the field `rules`, and is ready once the hosts
    /// of the new rules have addresses.
    pub fn apply(&mut self, change: impl FnOnce() -> Result<()>) -> Result<u64> {
        let applied = |line: &str| LogLine::parse(line).is_some_and(|line| line.message() == "policy applied");
        // The one that it says at start, so that it is not taken for the answer to the change.
        self.running.wait_for_line("the first policy to be applied", applied)?;
        let mark = self.running.stderr_mark();
        change()?;
        let line = self.running.wait_for_line_after(mark, "the policy to be applied", applied)?;
        self.wait_until_ready()?;
        let line = LogLine::parse(&line).expect("the line was parsed just now");
        line.get("rules").and_then(Value::as_u64).context("`policy applied` without a number of rules")
    }

    /// SIGKILL: as a crash.
    pub fn kill(mut self) {
        self.running.kill();
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.running.signal(Signal::SIGTERM)?;
        self.running.wait(END_PATIENCE)
    }

    /// Waits for the end of an agent that ends by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.running.wait(END_PATIENCE)
    }
}

/// A line of the agent's log.
#[derive(Clone, Debug)]
pub struct LogLine(Value);

impl LogLine {
    fn parse(line: &str) -> Option<Self> {
        serde_json::from_str::<Value>(line).ok().filter(Value::is_object).map(Self)
    }

    /// A field, be it at the top or under `fields`.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).or_else(|| self.0.get("fields")?.get(field))
    }

    /// A field's text; numbers and booleans as they are written. Empty if it is not there.
    pub fn text(&self, field: &str) -> String {
        match self.get(field) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// The message.
    pub fn message(&self) -> String {
        self.text("message")
    }

    /// Whether this is the record of a request: its target is `access`, whatever the crate.
    pub fn is_access_record(&self) -> bool {
        ["access", "access_log"].contains(&self.text("target").rsplit("::").next().unwrap_or_default())
    }
}

/// The program under test: `EGRESS_BIN`, or the `egress` built beside the program that runs now.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EGRESS_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    // Tests are in deps/, programs one above.
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("egress")).find(|path| path.is_file());
    found.context("no egress beside the test: build it (cargo build -p egress-userspace), or set EGRESS_BIN")
}
