//! `egress detach`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use egress::kernel::pins;

use crate::cli::{DetachOptions, complain};

pub(crate) fn detach(options: &DetachOptions) -> ExitCode {
    match pins::detach(&options.pin_dir, options.force) {
        Ok(removed) => {
            // What was done is done, whether or not anybody reads of it.
            let mut out = io::stdout();
            if removed.is_empty() {
                let _ = writeln!(out, "nothing to detach: {} has no pins", options.pin_dir.display());
            }
            for path in removed {
                let _ = writeln!(out, "removed {}", path.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    }
}
