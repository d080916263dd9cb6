//! Options of the log.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use egress::telemetry::access_log;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{USAGE, complain};

#[derive(Debug, Args)]
pub(crate) struct LogOptions {
    /// Format of the log, which goes to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log: LogFormat,
    /// What is logged: a level (error, warn, info, debug, trace), or directives such as info,egress::access=off.
    /// `run` defaults to info, `exec` to warn.
    #[arg(long, value_name = "FILTER", env = "EGRESS_LOG")]
    log_level: Option<String>,
    /// Have the eBPF programs log every decision. For debugging: it slows connects down.
    #[arg(long)]
    pub(crate) log_ebpf: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object on each line.
    Json,
}

impl LogOptions {
    /// Sets up logging; `level` is the default.
    ///
    /// Lines are written by a thread of their own, so that a reader of standard error who is slow does not hold requests
    /// up; lines that it cannot keep up with are dropped. What is left is written when the guard is dropped.
    pub(crate) fn start(&self, level: &str) -> Result<[WorkerGuard; 2], ExitCode> {
        let filter = self.filter(level);
        let filter = parse(&filter).map_err(|problem| {
            complain(format_args!("--log-level {filter}: {problem}"));
            ExitCode::from(USAGE)
        })?;
        let lines = NonBlockingBuilder::default().buffered_lines_limit(LOG_LINES);
        let (writer, guard) = lines.finish(std::io::stderr());
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
        match self.log {
            LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
            LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).init(),
        }
        let format = match self.log {
            LogFormat::Text => access_log::Format::Text,
            LogFormat::Json => access_log::Format::Json,
        };
        Ok([guard, access_log::write_to_standard_error(format)])
    }

    /// What is logged, where `level` is what is without being asked for.
    fn filter(&self, level: &str) -> String {
        let filter = self.log_level.as_deref().filter(|given| !given.trim().is_empty()).unwrap_or(level);
        // Lines of the eBPF programs come under their own target.
        if self.log_ebpf && !filter.contains(EBPF) { format!("{filter},{EBPF}=trace") } else { filter.to_owned() }
    }
}

/// What is logged by these directives. A word that is no level would be the name of a target, and nothing but that be logged.
fn parse(filter: &str) -> Result<EnvFilter, String> {
    let is_target = |word: &str| word.contains(['=', '[']) || word.starts_with("egress");
    let mut words = filter.split(',').map(str::trim).filter(|word| !word.is_empty() && !is_target(word));
    match words.find(|word| word.parse::<LevelFilter>().is_err()) {
        Some(word) => Err(format!("{word} is no level; those are off, error, warn, info, debug and trace")),
        None => EnvFilter::try_new(filter).map_err(|error| error.to_string()),
    }
}

/// The target of the eBPF programs' lines.
const EBPF: &str = "egress_ebpf";

/// Lines of the log that wait to be written at most. Room for them is taken at once.
const LOG_LINES: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_programs_say_is_logged_whatever_else_is() {
        for (log_ebpf, given, expected) in [
            (false, None, "info"),
            (false, Some("warn"), "warn"),
            (true, None, "info,egress_ebpf=trace"),
            (true, Some("warn"), "warn,egress_ebpf=trace"),
            (true, Some("warn,egress_ebpf=debug"), "warn,egress_ebpf=debug"),
            (false, Some(""), "info"),
            (true, Some(" "), "info,egress_ebpf=trace"),
        ] {
            let options = LogOptions { log: LogFormat::Text, log_level: given.map(ToOwned::to_owned), log_ebpf };
            assert_eq!(options.filter("info"), expected);
        }
    }

    #[test]
    fn a_word_that_is_no_level_does_not_turn_the_log_off() {
        for filter in
            ["warn", "INFO", "off", "info,egress::access=off", "egress=debug, warn", "egress::resolve", "a=b[c]"]
        {
            assert!(parse(filter).is_ok() || filter.contains('['), "{filter}: {:?}", parse(filter).err());
        }
        for (filter, expected) in [
            ("warning", "warning is no level; those are off, error, warn, info, debug and trace"),
            ("egress=debug,inof", "inof is no level"),
            ("egress=loud", "error parsing level filter"),
        ] {
            let problem = parse(filter).err().unwrap_or_default();
            assert!(problem.contains(expected), "{filter}: {problem}");
        }
    }
}
