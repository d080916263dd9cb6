//! The programs that are compared, and how each is started.

use std::{collections::BTreeMap, env, fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use harness::{
    agent::{Agent, AgentOptions},
    process::{Command, Running},
};
use nix::sched::CpuSet;

use super::{
    grounds::{CLOSING, Grounds, HTTP1, HTTP2},
    usage::family,
};

/// As many streams as the origin takes (`origin.conf`): before it is told, Envoy would begin any number, which are refused.
const ENVOY_HTTP2: &str = "http2_protocol_options: { max_concurrent_streams: 128 }";

/// A proxy's program; Envoy is one for each protocol that it is told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    Egress,
    Nginx,
    Haproxy,
    EnvoyHttp1,
    EnvoyHttp2,
}

impl Program {
    /// Where it listens: for requests to the origin that keeps connections, to the one that closes them, and to the one in clear.
    pub(super) fn ports(self) -> [u16; 3] {
        let first = match self {
            Self::Egress => 80,
            Self::Nginx => 8100,
            Self::Haproxy => 8200,
            Self::EnvoyHttp1 => 8300,
            Self::EnvoyHttp2 => 8400,
        };
        [first, first + 1, first + 2]
    }

    /// Where its executable is, if it is installed. `ENVOY_BIN` says so of Envoy, which is no package of Debian.
    pub(super) fn executable(self) -> Option<PathBuf> {
        let name = match self {
            Self::Egress => return harness::agent::binary().ok(),
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::EnvoyHttp1 | Self::EnvoyHttp2 => {
                if let Some(path) = env::var_os("ENVOY_BIN") {
                    return Some(PathBuf::from(path)).filter(|path| path.is_file());
                }
                "envoy"
            }
        };
        let path = env::var_os("PATH").unwrap_or_default();
        let of_root = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        env::split_paths(&path).chain(of_root).map(|directory| directory.join(name)).find(|file| file.is_file())
    }

    /// What it says about its version: a line.
    pub(super) fn version(self) -> Result<String> {
        let executable = self.executable().with_context(|| format!("{self:?} is not installed"))?;
        let argument = if matches!(self, Self::Nginx | Self::Haproxy) { "-v" } else { "--version" };
        let output = Command::new(executable).arg(argument).run()?;
        let text = output.text() + &output.stderr;
        let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        // Such as `nginx version: nginx/1.22.1`, `HAProxy version 2.6.12 2023/12/09 - https://...`, and, of Envoy, the path,
        // `version:`, and `revision/1.40.0/Clean/...`.
        Ok(match self {
            Self::EnvoyHttp1 | Self::EnvoyHttp2 => format!("Envoy {}", line.split('/').rev().nth(3).unwrap_or(line)),
            _ => line.trim_start_matches("nginx version: ").split(" - ").next().unwrap_or(line).to_owned(),
        })
    }

    fn start<'a>(self, grounds: &'a Grounds, workers: u16, cpus: CpuSet, more: &[&str]) -> Result<Server<'a>> {
        let dir = grounds.dir(&format!("{self:?}").to_lowercase())?;
        if self == Self::Egress {
            let config = grounds.bed.config_dir()?;
            let workers = workers.to_string();
            let hosts = ["--host", HTTP1, "--host", HTTP2, "--host", CLOSING, "--workers", workers.as_str()];
            let arguments = [&hosts, more].concat();
            let options = AgentOptions::new(config.path()).cpus(cpus).log_file(&dir.join("log")).args(&arguments);
            return Ok(Server::Agent(Agent::spawn(&grounds.bed, &options)?));
        }
        let [port, closing_port, plain_port] = self.ports().map(|port| port.to_string());
        let (template, origin, protocol) = match self {
            Self::Egress | Self::Nginx => (include_str!("programs/nginx.conf"), HTTP1, ""),
            Self::Haproxy => (include_str!("programs/haproxy.cfg"), HTTP1, ""),
            Self::EnvoyHttp1 => (include_str!("programs/envoy.yaml"), HTTP1, "http_protocol_options: {}"),
            Self::EnvoyHttp2 => (include_str!("programs/envoy.yaml"), HTTP2, ENVOY_HTTP2),
        };
        let values = [
            ("PORT", port),
            ("CLOSING_PORT", closing_port),
            ("PLAIN_PORT", plain_port),
            ("ORIGIN", grounds.address(origin).to_string()),
            ("PROTOCOL", protocol.to_owned()),
        ];
        let configuration =
            dir.join(if template.contains("static_resources") { "configuration.yaml" } else { "configuration" });
        fs::write(&configuration, grounds.fill(template, &dir, &values)?)?;
        let executable = self.executable().with_context(|| format!("{self:?} is not installed"))?;
        let command = grounds.peer_command(&executable)?;
        let command = match self {
            Self::Egress | Self::Nginx => command.args(["-e", "stderr", "-p"]).arg(&dir).arg("-c").arg(&configuration),
            Self::Haproxy => command.args(["-db", "-f"]).arg(&configuration),
            Self::EnvoyHttp1 | Self::EnvoyHttp2 => {
                let options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"];
                command.args(options).arg(&configuration)
            }
        };
        Ok(Server::Peer(command.spawn()?))
    }
}

/// A program that runs.
enum Server<'a> {
    Agent(Agent<'a>),
    Peer(Running),
}

impl Server<'_> {
    fn running(&mut self) -> &mut Running {
        match self {
            Self::Agent(agent) => agent.process(),
            Self::Peer(running) => running,
        }
    }
}

/// Those that run, by program.
pub(super) struct Servers<'a> {
    grounds: &'a Grounds,
    running: BTreeMap<Program, Server<'a>>,
}

impl<'a> Servers<'a> {
    pub(super) fn new(grounds: &'a Grounds) -> Self {
        Self { grounds, running: BTreeMap::new() }
    }

    /// Starts a program unless it runs, and waits until it serves.
    pub(super) fn ensure(&mut self, program: Program) -> Result<()> {
        if self.running.contains_key(&program) {
            return Ok(());
        }
        self.start(program)?;
        self.wait(program)
    }

    /// Starts a program without waiting for it, in place of the one that runs.
    pub(super) fn start(&mut self, program: Program) -> Result<()> {
        self.stop(program);
        self.running.insert(program, program.start(self.grounds, 1, self.grounds.cores.proxy, &[])?);
        Ok(())
    }

    /// Starts egress with so many workers on these processors, in place of the one that runs.
    pub(super) fn start_with_workers(&mut self, workers: u16, cores: CpuSet) -> Result<()> {
        self.stop(Program::Egress);
        let server = Program::Egress.start(self.grounds, workers, cores, &[])?;
        self.running.insert(Program::Egress, server);
        self.wait(Program::Egress)
    }

    /// Starts egress so that it looks at all connections to its ports, in place of the one that runs.
    pub(super) fn start_capturing(&mut self) -> Result<()> {
        // The networks that the node has a route to would be left alone.
        let captures = ["--capture", "ports", "--exclude-cidr", "127.0.0.0/8"];
        self.stop(Program::Egress);
        let server = Program::Egress.start(self.grounds, 1, self.grounds.cores.proxy, &captures)?;
        self.running.insert(Program::Egress, server);
        self.wait(Program::Egress)
    }

    /// Kills it. What an agent has pinned stays: until the next one, its destinations are refused.
    pub(super) fn stop(&mut self, program: Program) {
        self.running.remove(&program);
    }

    /// The agent, if it runs.
    pub(super) fn agent(&self) -> Option<&Agent<'a>> {
        self.running.values().find_map(|server| match server {
            Server::Agent(agent) => Some(agent),
            Server::Peer(_) => None,
        })
    }

    /// Its processes.
    pub(super) fn processes(&mut self, program: Program) -> Result<Vec<u32>> {
        let server = self.running.get_mut(&program).with_context(|| format!("{program:?} does not run"))?;
        family(server.running().pid())
    }

    /// Empties the log, so that it does not fill the disk.
    pub(super) fn forget_log(&self) -> Result<()> {
        let log = self.grounds.dir("egress")?.join("log");
        if log.exists() {
            fs::File::options().write(true).open(log)?.set_len(0)?;
        }
        Ok(())
    }

    fn wait(&mut self, program: Program) -> Result<()> {
        let grounds = self.grounds;
        let server = self.running.get_mut(&program).with_context(|| format!("{program:?} does not run"))?;
        if let Server::Agent(agent) = server {
            return agent.wait_until_ready().with_context(|| {
                let log = grounds.bed.dir().join("egress/log");
                format!("egress said:\n{}", fs::read_to_string(log).unwrap_or_default())
            });
        }
        let host = if program == Program::EnvoyHttp2 { HTTP2 } else { HTTP1 };
        let to = Grounds::peer_address(program.ports()[0]).to_string();
        let arguments = ["--first", "--host", host, "--to", &to].map(str::to_owned);
        match grounds.client_command(false, &arguments)?.run()?.success() {
            Ok(_) => Ok(()),
            Err(error) => bail!("{program:?} does not serve: {error:#}\n{}", server.running().stderr().join("\n")),
        }
    }
}
