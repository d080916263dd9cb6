//! What a kernel must have: the agent starts where it is there, and says what is missing where it is not. Whether this
//! machine's kernel is one or the other, the test goes by its version; `cargo xtask test --kernel` has others.

use std::fs;

use anyhow::{Context, Result, ensure};
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
};

type Version = (u32, u32);

/// Helpers without which nothing can be intercepted, and the kernels that brought them.
const NEEDED: [(&str, Version); 2] = [("bpf_get_netns_cookie", (5, 15)), ("bpf_set_retval", (5, 18))];

/// Helpers without which the agent does what it can.
const OPTIONAL: [(&str, Version); 1] = [("bpf_skc_to_mptcp_sock", (5, 19))];

#[test]
fn a_kernel_is_used_as_far_as_it_goes_and_told_what_it_lacks() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let kernel = version(&release).with_context(|| format!("the version of Linux {release}"))?;
    let bed = TestBed::new("requirements")?;
    let config = bed.config_dir()?;
    let options = AgentOptions::new(config.path()).args(&["--host", "edition.cnn.com"]);

    if NEEDED.iter().any(|(_, since)| kernel < *since) {
        let mut agent = Agent::spawn(&bed, &options)?;
        let status = agent.wait()?;
        let said = agent.log_text();
        ensure!(status.code() == Some(1), "{status}: {said}");
        ensure!(said.contains(&format!("this kernel (Linux {release}) cannot run egress")), "{said}");
        for (helper, since) in NEEDED {
            ensure!(said.contains(helper) == (kernel < since), "{helper}: {said}");
        }
        ensure!(bed.cgroup().programs()? == 0, "programs are attached");
    } else {
        let agent = Agent::start(&bed, &options)?;
        let said = agent.log_text();
        for (helper, since) in OPTIONAL {
            ensure!(said.contains(helper) == (kernel < since), "{helper}: {said}");
        }
        ensure!(NEEDED.iter().all(|(helper, _)| !said.contains(helper)), "{said}");
        ensure!(bed.cgroup().programs()? > 0, "no programs are attached");
    }
    Ok(())
}

fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(['.', '-']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}
