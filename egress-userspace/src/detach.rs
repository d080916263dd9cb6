//! `egress detach`.

use std::process::ExitCode;

use egress::kernel::pins;

use crate::cli::DetachOptions;

pub(crate) fn detach(options: &DetachOptions) -> ExitCode {
    match pins::detach(&options.pin_dir, options.force) {
        Ok(removed) if removed.is_empty() => {
            println!("nothing to detach: {} has no pins", options.pin_dir.display());
            ExitCode::SUCCESS
        }
        Ok(removed) => {
            for path in removed {
                println!("removed {}", path.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("egress: {error}");
            ExitCode::FAILURE
        }
    }
}
