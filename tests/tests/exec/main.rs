//! `egress exec`: one command under interception, which behaves as if it had been started without us.

mod command;
mod ending;
mod usage;

use std::{fs, path::PathBuf};

use anyhow::Result;
use harness::{
    TestBed,
    agent::binary,
    origin::{Origin, Reply, ServerTls},
    process::Command,
};

const HOST: &str = "edition.cnn.com";
const URL: &str = "http://edition.cnn.com/politics";

/// `egress exec --host HOST --`, in the pod, to be followed by a command. Quiet, since the pod has no name server, of
/// which it would be warned.
fn exec(bed: &TestBed) -> Result<Command> {
    Ok(egress(bed)?.args(["exec", "--log-level", "error", "--host", HOST, "--"]))
}

/// A shell under interception.
fn shell(bed: &TestBed, script: &str) -> Result<Command> {
    Ok(exec(bed)?.args(["sh", "-c", script]))
}

/// `egress` in the pod. It makes a cgroup below the one that it is in, which is the test's.
fn egress(bed: &TestBed) -> Result<Command> {
    bed.client_command(binary()?)
}

/// An origin that says `fine`.
fn origin(bed: &TestBed) -> Result<Origin> {
    let tls = ServerTls::new(bed.pki().server(&[HOST])?);
    bed.embedded_origin().handler(|_| Reply::ok("fine")).tls(&bed.sockets(HOST, 443), &tls)?.start()
}

/// The cgroups that commands run in now.
fn cgroups(bed: &TestBed) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(bed.cgroup().path())?.flatten().map(|entry| entry.path());
    Ok(entries.filter(|path| path.is_dir()).collect())
}

/// The processes in the cgroups that commands run in.
fn processes(bed: &TestBed) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for cgroup in cgroups(bed)? {
        // It may be removed at this very moment.
        let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    Ok(found)
}

/// How many processes there are in the test's own cgroup: the pod's sandbox, egress, and its guardian.
fn processes_beside(bed: &TestBed) -> Result<usize> {
    Ok(fs::read_to_string(bed.cgroup().procs())?.lines().count())
}
