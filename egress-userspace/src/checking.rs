//! `egress check`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use egress::{check, config::Source};

use crate::cli::{CheckOptions, OutputFormat};

pub(crate) fn check(options: &CheckOptions) -> ExitCode {
    let sources: Vec<_> = options.paths.iter().cloned().map(Source::Path).collect();
    let report = check::check(&sources);
    let text = match options.output {
        OutputFormat::Text => report.to_string(),
        OutputFormat::Json => match serde_json::to_string_pretty(&report) {
            Ok(json) => json,
            Err(error) => {
                eprintln!("egress: cannot write the report: {error}");
                return ExitCode::FAILURE;
            }
        },
    };
    // Who has closed standard output wants only the exit code.
    let _ = writeln!(io::stdout(), "{text}");
    let is_bad = report.errors > 0 || (options.strict && report.warnings > 0);
    ExitCode::from(u8::from(is_bad))
}
