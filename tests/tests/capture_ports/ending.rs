//! How connections end that are passed on.

use std::{
    io::{ErrorKind, Read},
    sync::mpsc,
};

use anyhow::{Result, ensure};
use harness::{raw_server::RawServer, wait::PATIENCE};

use super::{CLIENT, ELSEWHERE, PLACE, agent, bed};

#[test]
fn an_upload_that_ends_with_the_agent_does_not_look_complete() -> Result<()> {
    let bed = bed("killed")?;
    let (saw, seen) = mpsc::channel();
    let _server = RawServer::start(bed.origin(), &bed.sockets(PLACE, 80), move |mut stream| {
        loop {
            let read = stream.read(&mut [0; 1024]).map_err(|error| error.kind());
            saw.send(read)?;
            if !matches!(read, Ok(1..)) {
                return Ok(());
            }
        }
    })?;
    for address in bed.sockets(PLACE, 80) {
        let agent = agent(&bed, &ELSEWHERE)?;
        let client = bed.client_command(CLIENT)?.args(["talk", &address.to_string()]).spawn()?;
        client.write_stdin(b"SSH-2.0-OpenSSH_9.2\r\n")?;
        let begun = seen.recv_timeout(PATIENCE)?;
        ensure!(matches!(begun, Ok(1..)), "{begun:?}");
        agent.kill();
        let end = seen.recv_timeout(PATIENCE)?;
        ensure!(end == Err(ErrorKind::ConnectionReset), "{end:?}");
    }
    Ok(())
}
