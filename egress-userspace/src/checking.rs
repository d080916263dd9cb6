//! `egress check`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use egress::{
    check,
    config::{Code, Source},
};
use tokio::runtime::Builder;

use crate::cli::{CheckOptions, OutputFormat, complain};

pub(crate) fn check(options: &CheckOptions) -> ExitCode {
    if options.list_codes {
        return list_codes();
    }
    let sources: Vec<_> = options.paths.iter().cloned().map(Source::Path).collect();
    let report = if options.probe {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                complain(format_args!("cannot probe: {error}"));
                return ExitCode::FAILURE;
            }
        };
        runtime.block_on(check::check_and_probe(&sources, &options.probe_host))
    } else {
        check::check(&sources)
    };
    let text = match options.output {
        OutputFormat::Text => report.to_string(),
        OutputFormat::Json => match serde_json::to_string_pretty(&report) {
            Ok(json) => json,
            Err(error) => {
                complain(format_args!("cannot write the report: {error}"));
                return ExitCode::FAILURE;
            }
        },
    };
    // Who has closed standard output wants only the exit code.
    let _ = writeln!(io::stdout(), "{text}");
    let is_bad = report.errors > 0 || (options.strict && report.warnings > 0);
    ExitCode::from(u8::from(is_bad))
}

fn list_codes() -> ExitCode {
    for code in Code::ALL {
        let (id, name, severity) = (code.id(), code.name(), code.severity());
        // Who has closed standard output has read enough.
        let _ = writeln!(io::stdout(), "{id} {severity:<7} {name:<30} {}", code.meaning());
    }
    ExitCode::SUCCESS
}
