//! What the process cannot go on without.

use std::{process, thread, time::Duration};

/// How long the log has to say why.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Ends the process when a panic drops it. Whoever starts it again has it work; a worker, or a listener, that has ended would be
/// given connections that nobody serves.
pub(crate) struct Vital;

impl Drop for Vital {
    fn drop(&mut self) {
        if thread::panicking() {
            thread::sleep(LAST_WORDS);
            process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        os::unix::process::ExitStatusExt as _,
        panic::catch_unwind,
        process::{Command, Stdio},
    };

    use super::*;

    const CHILD: &str = "EGRESS_TEST_PANICS";

    #[test]
    fn a_panic_ends_the_process_although_it_is_caught() {
        if env::var_os(CHILD).is_some() {
            let _ = catch_unwind(|| {
                let _vital = Vital;
                panic!("on purpose");
            });
            return;
        }
        let itself = env::current_exe().expect("a path");
        let name = "worker::vital::tests::a_panic_ends_the_process_although_it_is_caught";
        let mut child = Command::new(itself);
        let child = child.args(["--exact", name]).env(CHILD, "1").stdout(Stdio::null()).stderr(Stdio::null());
        let status = child.status().expect("it runs");
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
    }
}
