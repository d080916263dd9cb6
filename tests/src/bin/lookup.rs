//! Asks a name server one question by UDP, from sockets of all kinds, and prints how many records the answer has, or
//! `nothing`. It is a program of its own since it must be inside the cgroup before it makes a socket.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;
use socket2::{Domain, Protocol, Socket, Type};

#[derive(Parser)]
#[command(about = "Asks a name server")]
struct Cli {
    /// The server.
    server: IpAddr,
    /// The name, in the case in which it is to be sent.
    name: String,
    /// Asks for IPv6 addresses.
    #[arg(long)]
    aaaa: bool,
    /// Connects the socket.
    #[arg(long)]
    connected: bool,
    /// Connects the socket, says so, and waits for a line before it asks.
    #[arg(long)]
    hold: bool,
    /// Uses an IPv6 socket for an IPv4 server.
    #[arg(long)]
    mapped: bool,
    /// How long to wait for the answer, in milliseconds.
    #[arg(long, default_value_t = 10_000)]
    patience: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let server = match cli.server {
        IpAddr::V4(v4) if cli.mapped => v4.to_ipv6_mapped().into(),
        address => address,
    };
    let server = SocketAddr::new(server, 53).into();
    let domain = if cli.server.is_ipv6() || cli.mapped { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).context("socket")?;
    socket.set_read_timeout(Some(Duration::from_millis(cli.patience)))?;
    let query = query(&cli.name, if cli.aaaa { 28 } else { 1 });
    if cli.connected || cli.hold {
        socket.connect(&server).context("connect")?;
        if cli.hold {
            println!("connected");
            io::stdin().read_line(&mut String::new())?;
        }
        socket.send(&query).context("send")?;
    } else {
        socket.send_to(&query, &server).context("sendto")?;
    }
    let mut answer = [std::mem::MaybeUninit::uninit(); 8192];
    match socket.recv(&mut answer) {
        Ok(length) => {
            // SAFETY: the kernel has written that many bytes.
            let header = answer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect::<Vec<_>>();
            let count = header.get(6..8).context("the answer is too short")?;
            println!("{}", u16::from_be_bytes([count[0], count[1]]));
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => println!("nothing"),
        Err(error) => return Err(error).context("recv"),
    }
    Ok(())
}

/// A recursive query with one question of class IN, and an OPT record that announces room for 4096 bytes.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend([kind, 1].into_iter().flat_map(u16::to_be_bytes));
    query.push(0);
    query.extend([41, 4096, 0, 0, 0_u16].into_iter().flat_map(u16::to_be_bytes));
    query
}
