//! Much that is passed on.

use std::{
    collections::HashMap,
    fs,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
};

use nix::sys::signal::Signal;

use super::*;

#[test]
fn much_of_another_protocol_goes_both_ways_as_it_is() -> Result<()> {
    let bed = bed("bulk")?;
    let _server = RawServer::start(bed.origin(), &bed.sockets(PLACE, 80), |stream| {
        let (mut from, mut to) = (stream.try_clone()?, stream);
        std::io::copy(&mut from, &mut to)?;
        Ok(())
    })?;
    let agent = agent(&bed, &ELSEWHERE)?;
    let bytes: Vec<u8> = (0..4_000_000_u32).map(|number| (number % 251) as u8).collect();
    for address in bed.sockets(PLACE, 80) {
        let client = bed.client_command(CLIENT)?.args(["talk", &address.to_string()]).stdin(bytes.clone());
        let output = client.run()?.success()?;
        ensure!(output.stdout == bytes, "{address}: {} bytes came back", output.stdout.len());
    }
    wait_until("both to be counted", PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum(PASSED_ON, &[("outcome", "complete")]) == 2.0)
    })
}

/// In pipes, whose pages the kernel passes on (splice(2)): while nobody takes it, something is in one.
#[test]
fn much_that_is_passed_on_is_moved_rather_than_copied() -> Result<()> {
    const TRIES: u32 = 20;
    let bed = bed("moved")?;
    let bytes: Vec<u8> = (0..64_000_000_u32).map(|number| (number % 251) as u8).collect();
    let said = bytes.clone();
    let _server = RawServer::start(bed.origin(), &bed.sockets(PLACE, 80), move |mut stream| {
        stream.read_exact(&mut [0; 5])?;
        Ok(stream.write_all(&said)?)
    })?;
    let mut agent = agent(&bed, &ELSEWHERE)?;
    let pid = agent.process().pid();
    let before = pipes(pid)?;
    for address in bed.sockets(PLACE, 80) {
        // What is copied first can be all that it waits with, and all can have come before it is stopped.
        let mut was_seen = false;
        for _ in 0..TRIES {
            let mut client = bed.client_command(CLIENT)?.args(["talk", &address.to_string()]).spawn()?;
            client.write_stdin(b"\0\x01\x02\x03\x04")?;
            wait_until("the first bytes", PATIENCE, || !client.stdout_bytes().is_empty())?;
            client.signal(Signal::SIGSTOP)?;
            let is_in_pipe = || in_new_pipes(pid, &before).is_ok_and(|count| count > 0);
            was_seen = wait_until("something in a pipe", Duration::from_secs(1), is_in_pipe).is_ok();
            client.signal(Signal::SIGCONT)?;
            ensure!(client.wait(PATIENCE)?.success(), "{:?}", client.stderr());
            ensure!(client.stdout_bytes() == bytes, "{address}: it is another content");
            if was_seen {
                break;
            }
        }
        ensure!(was_seen, "{address}: there was never anything in a pipe");
    }
    Ok(())
}

/// The pipes of a process, by what their descriptors are shown as.
fn pipes(pid: u32) -> Result<HashMap<PathBuf, PathBuf>> {
    let mut found = HashMap::new();
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = descriptor?.path();
        // Some are gone by now.
        if let Ok(pipe) = fs::read_link(&path)
            && pipe.to_string_lossy().starts_with("pipe:")
        {
            found.insert(pipe, path);
        }
    }
    Ok(found)
}

/// How many bytes are in those pipes of a process that it did not have before.
fn in_new_pipes(pid: u32, before: &HashMap<PathBuf, PathBuf>) -> Result<usize> {
    let mut all = 0;
    for (_, path) in pipes(pid)?.iter().filter(|(pipe, _)| !before.contains_key(*pipe)) {
        // One that nobody has open for writing any more is not waited for.
        let Ok(pipe) = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) else { continue };
        let mut count: libc::c_int = 0;
        // SAFETY: it writes an int, which there is.
        ensure!(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut count) } == 0);
        all += usize::try_from(count)?;
    }
    Ok(all)
}
