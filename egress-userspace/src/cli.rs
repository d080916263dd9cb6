//! The command line.

mod limits;
mod log;

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, error::ErrorKind};
use egress::{
    agent::AgentError,
    capture::CaptureMode,
    config::Source,
    handover,
    kernel::pins::DEFAULT_DIR,
    policy::{Cidr, HostName, HostPattern},
};

use self::{
    limits::{LimitOptions, parse_limit},
    log::LogOptions,
};

/// Sends plain HTTP to configured hosts on as verified TLS, without touching the application.
#[derive(Debug, Parser)]
#[command(name = "egress", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// Reads the command line.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let cli = Self::try_parse()?;
        let capture = match &cli.command {
            Command::Run(options) => Some(&options.capture),
            Command::Exec(options) => Some(&options.capture),
            Command::Check(_) | Command::Detach(_) | Command::SelfTest => None,
        };
        if capture.is_some_and(|capture| capture.capture == CaptureBy::Hosts && !capture.exclude_cidr.is_empty()) {
            let message = "--exclude-cidr is of use only with --capture ports";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(cli)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve all processes under one or more cgroups until SIGTERM or SIGINT, or until another `run` takes over.
    ///
    /// At start, every minute (`--self-test-interval`), and on SIGUSR2, it connects from each of these cgroups itself, and is ready only if that is
    /// intercepted.
    ///
    /// Exits with 0 if it ended in order, be it that the drain timeout or a second signal cut off what was under way; with 64 if the
    /// command line or the configuration is bad; else with 1.
    Run(RunOptions),
    /// Run one command under interception, and leave nothing behind.
    ///
    /// Exits with the command's own code, or 128 + N if signal N ended it; with 127 if there is no such command, 126 if it cannot be
    /// run; with 64 if the command line or the configuration is bad, and with 125 if something else of egress failed, or no address of
    /// a host was found.
    Exec(ExecOptions),
    /// Say what rules would do, and all that is wrong with them: nothing is touched, and root is not needed.
    ///
    /// Exits with 0 if they can be used, with 1 if not, or if an origin that was probed cannot, or if there are warnings with `--strict`,
    /// and with 64 if the command line is bad.
    Check(CheckOptions),
    /// Remove what `run` leaves in place when it ends: from then on nothing is intercepted or refused. While an agent uses it
    /// that is refused.
    ///
    /// Exits with 0 if nothing is left, with 1 if something is, and with 64 if the command line is bad.
    Detach(DetachOptions),
    /// What `run` starts in each cgroup, to see whether it is intercepted there.
    #[command(name = egress::self_test::COMMAND, hide = true)]
    SelfTest,
}

/// Where rules come from. At least one is needed.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct RuleOptions {
    /// Istio resources (`egress check` explains them): a YAML file, or a directory of them (.yaml, .yml, .json; not those in
    /// directories below it), of which there must be one. Watched for changes. Can be repeated.
    #[arg(short, long, value_name = "FILE|DIR")]
    config: Vec<PathBuf>,
    /// Originate TLS for this host: http://HOST (port 80) goes to HOST:443, verified against the system's roots. `*.NAME`
    /// stands for all hosts below NAME. Can be repeated.
    #[arg(long, value_name = "HOST")]
    host: Vec<HostPattern>,
}

impl RuleOptions {
    pub(crate) fn sources(self) -> Vec<Source> {
        let files = self.config.into_iter().map(Source::Path);
        files.chain(self.host.into_iter().map(Source::Host)).collect()
    }
}

/// What is redirected.
#[derive(Debug, Args)]
pub(crate) struct CaptureOptions {
    /// Which connections are redirected. `hosts`: those to addresses of configured hosts, which the node's resolver gives, a
    /// ServiceEntry lists, or a DNS answer has told an application. `ports`: all those to configured ports; what turns out
    /// not to be for a configured host is passed on byte for byte.
    #[arg(long, value_enum, default_value_t = CaptureBy::Hosts)]
    capture: CaptureBy,
    /// With `--capture ports`: connections to this network are left alone, unless they are to a known address of a configured host.
    /// Can be repeated. Without it: link-local networks, and those that the node's main table has a route to (/8 and longer, of IPv6
    /// /16): the cluster's. Loopback and fe80::/10 always are.
    #[arg(long, value_name = "CIDR")]
    exclude_cidr: Vec<Cidr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CaptureBy {
    Hosts,
    Ports,
}

impl CaptureOptions {
    pub(crate) fn mode(self) -> CaptureMode {
        match self.capture {
            CaptureBy::Hosts => CaptureMode::Hosts,
            CaptureBy::Ports => CaptureMode::Ports(self.exclude_cidr),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    pub(crate) rules: RuleOptions,
    #[command(flatten)]
    pub(crate) log: LogOptions,
    #[command(flatten)]
    pub(crate) capture: CaptureOptions,
    /// Serve the processes under this cgroup2 directory. Can be repeated. Without it: the pods' cgroups (kubepods) if the
    /// node has one at start, also those that come later, else all processes.
    #[arg(long, value_name = "DIR")]
    pub(crate) cgroup: Vec<PathBuf>,
    /// Where /readyz, /healthz and /metrics are served.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15020")]
    pub(crate) admin: SocketAddr,
    /// How long requests under way may take to finish after SIGTERM or SIGINT, or when another agent has taken over, such
    /// as 30s, 500ms or 2m.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub(crate) drain_timeout: Duration,
    /// How long the last good answer for a name is used after its TTL while no name server answers. Its addresses stay
    /// intercepted in any case.
    #[arg(long, value_name = "TIME", default_value = "60m", value_parser = parse_duration)]
    pub(crate) dns_max_stale: Duration,
    /// Where programs and maps are pinned, on a bpffs. They stay when the agent ends: connects to configured
    /// destinations are then refused, until the next start or `egress detach`. Agents that are to run side by side need one
    /// each, and their own --state-dir and --admin.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub(crate) pin_dir: PathBuf,
    /// Where this agent and the next one meet, which takes its place without a lost request: a directory that is closed to
    /// all other users. Agents that are to run side by side need one each, and their own --pin-dir and --admin.
    #[arg(long, value_name = "DIR", default_value = handover::DEFAULT_DIR)]
    pub(crate) state_dir: PathBuf,
    /// How often it is tested that connects are intercepted. What is detached by somebody else leaves in clear until then.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_limit)]
    pub(crate) self_test_interval: Duration,
    /// Pin nothing: when the agent ends, or dies, traffic leaves in clear. What an earlier agent has pinned must have been
    /// removed by `egress detach`.
    #[arg(long, conflicts_with = "pin_dir")]
    pub(crate) fail_open: bool,
    /// Reset connections to configured destinations that were made before they could be intercepted, in clear. Without this
    /// they are reported.
    #[arg(long)]
    pub(crate) reset_existing: bool,
    /// Worker threads. Without it: one for each core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
}

#[derive(Debug, Args)]
pub(crate) struct ExecOptions {
    #[command(flatten)]
    pub(crate) rules: RuleOptions,
    #[command(flatten)]
    pub(crate) log: LogOptions,
    #[command(flatten)]
    pub(crate) capture: CaptureOptions,
    #[command(flatten)]
    pub(crate) limits: LimitOptions,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// Istio resources: YAML files, or directories of them, with at least one each. They are checked together.
    #[arg(required_unless_present = "list_codes", value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Say what can be found, by code, and check nothing.
    #[arg(long, exclusive = true)]
    pub(crate) list_codes: bool,
    /// Form of the answer, which goes to standard output.
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub(crate) output: OutputFormat,
    /// Exit with 1 if there are warnings, too.
    #[arg(long)]
    pub(crate) strict: bool,
    /// Connect to each origin, from here, and make the TLS handshake that requests would be sent over, and no more: prints
    /// what TLS agrees on, the certificates, and whether the rule accepts them.
    #[arg(long)]
    pub(crate) probe: bool,
    /// With `--probe`: a host to probe for a wildcard, or whose name to resolve for `resolution: NONE`. Can be repeated.
    #[arg(long, value_name = "HOST", requires = "probe")]
    pub(crate) probe_host: Vec<HostName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct DetachOptions {
    /// Where programs and maps are pinned.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    pub(crate) pin_dir: PathBuf,
    /// Also while an agent uses them. What it serves leaves in clear from then on.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Bad usage or configuration (EX_USAGE of sysexits.h).
pub(crate) const USAGE: u8 = 64;

/// Says so on standard error. Where nobody can read it the command still ends with the code that tells.
pub(crate) fn complain(what: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "egress: {what}");
}

/// Prints why the agent failed; gives [`USAGE`] if the configuration is at fault, else `otherwise`.
pub(crate) fn report(error: &AgentError, otherwise: u8) -> ExitCode {
    let diagnostics = if let AgentError::Config(error) = error { error.diagnostics() } else { Vec::new() };
    for found in &diagnostics {
        complain(format_args!("{found} [{}]", found.code.id()));
    }
    for line in error.to_string().lines().filter(|_| diagnostics.is_empty()) {
        complain(line);
    }
    ExitCode::from(if matches!(error, AgentError::Config(_)) { USAGE } else { otherwise })
}

/// Parses a time such as `30s`, `500ms` or `2m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u32 = number.parse().map_err(|_| format!("{text} is not a time such as 30s, 500ms or 2m"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number.into())),
        "s" => Ok(Duration::from_secs(number.into())),
        "m" => Ok(Duration::from_secs(60) * number),
        "" => Err(format!("{text} has no unit; write {text}s for seconds")),
        _ => Err(format!("{text}: unknown unit {unit}; there are ms, s and m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["30", "s", "", "-1s", "1h", "1.5s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
