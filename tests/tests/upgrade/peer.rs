//! The part of another agent, played by the test.

use std::{
    io::{Read as _, Write as _},
    path::PathBuf,
};

use anyhow::{Result, ensure};
use egress_common::names::map;
use harness::{TestBed, agent::Agent, wait::PATIENCE};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};

/// The id of no map: who asks with it does not use the agent's.
pub(super) const NO_MAPS: u32 = 0;

/// Talks to the agent as a successor does, as far as `steps` go.
pub(super) fn succeed(bed: &TestBed, agent: &Agent<'_>, steps: usize) -> Result<Socket> {
    let socket = connect(bed)?;
    if steps > 0 {
        ask(&socket, agent.map_id(map::FLOWS)?)?;
    }
    if steps > 1 {
        say(&socket, &json!("taking"))?;
    }
    Ok(socket)
}

/// Asks for what the agent has, with the id of the asker's map of flows.
pub(super) fn ask(socket: &Socket, maps: u32) -> Result<()> {
    say(socket, &hello(maps))?;
    if maps == NO_MAPS {
        ensure!(hear(socket)? == Some(json!("learned")), "it keeps what applications were told");
    }
    let answer = hear(socket)?;
    ensure!(answer == Some(json!({ "sockets": { "left": 0 } })), "{answer:?}");
    Ok(())
}

pub(super) fn hello(maps: u32) -> Value {
    json!({ "hello": { "protocol": 2, "maps": maps } })
}

pub(super) fn connect(bed: &TestBed) -> Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.connect(&SockAddr::unix(socket_path(bed))?)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

pub(super) fn socket_path(bed: &TestBed) -> PathBuf {
    bed.dir().join("state/agent.sock")
}

pub(super) fn say(mut socket: &Socket, message: &Value) -> Result<()> {
    Ok(socket.write_all(message.to_string().as_bytes())?)
}

/// The next message, without what comes with it; None at the end.
pub(super) fn hear(mut socket: &Socket) -> Result<Option<Value>> {
    let mut buffer = [0; 1024];
    let length = socket.read(&mut buffer)?;
    Ok(if length == 0 { None } else { Some(serde_json::from_slice(&buffer[..length])?) })
}
