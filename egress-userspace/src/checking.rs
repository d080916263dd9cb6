//! `egress check`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    thread,
};

use egress::{
    again::{FIRST_PAUSE, MOST_PAUSE},
    check,
    config::{Code, Progress, Source},
};
use tokio::runtime::Builder;

use crate::cli::{CheckOptions, OutputFormat, complain};

pub(crate) fn check(options: &CheckOptions) -> ExitCode {
    if options.list_codes {
        return list_codes();
    }
    let sources: Vec<_> = options.paths.iter().cloned().map(Source::Path).collect();
    let progress = tell_what_takes_long();
    let report = if options.probe {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                complain(format_args!("cannot probe: {error}"));
                return ExitCode::FAILURE;
            }
        };
        runtime.block_on(check::check_and_probe(&sources, &options.probe_host, &progress))
    } else {
        check::check(&sources, &progress)
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

/// Where a reading is that takes long is said now and then, for as long as the process lives.
fn tell_what_takes_long() -> Progress {
    let progress = Progress::default();
    let place = progress.clone();
    let tell = move || {
        let mut pause = FIRST_PAUSE;
        loop {
            // Many that are quick can take long together, and then it is none of them.
            let rest = match place.stay() {
                Some((path, stay)) if stay >= FIRST_PAUSE => {
                    let path = path.display();
                    complain(format_args!(
                        "{path} takes long to read, as where a mount hangs, or nobody writes to a pipe; the check waits for it"
                    ));
                    let rest = pause;
                    pause = (2 * pause).min(MOST_PAUSE);
                    rest
                }
                Some((_, stay)) => FIRST_PAUSE.saturating_sub(stay),
                None => FIRST_PAUSE,
            };
            thread::sleep(rest);
        }
    };
    // Without it nobody is told.
    let _ = thread::Builder::new().spawn(tell);
    progress
}

fn list_codes() -> ExitCode {
    for code in Code::ALL {
        let (id, name, severity) = (code.id(), code.name(), code.severity());
        // Who has closed standard output has read enough.
        let _ = writeln!(io::stdout(), "{id} {severity:<7} {name:<30} {}", code.meaning());
    }
    ExitCode::SUCCESS
}
