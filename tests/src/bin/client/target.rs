//! The sockets, and how they are connected.

use std::{
    fs::File,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::PATIENCE;

#[derive(Args)]
pub(crate) struct Target {
    /// Where to.
    address: SocketAddr,
    /// A Multipath TCP socket.
    #[arg(long)]
    mptcp: bool,
    /// An IPv6 socket, with an IPv4 address mapped.
    #[arg(long)]
    mapped: bool,
    /// Connects by sending the first bytes (MSG_FASTOPEN).
    #[arg(long)]
    fastopen: bool,
    /// Connects without blocking, and waits by poll.
    #[arg(long)]
    nonblocking: bool,
    /// Connects the same socket to this address first, which must refuse.
    #[arg(long)]
    after_refusal_by: Option<SocketAddr>,
    /// Connects the same socket to this address first, and dissolves that connection by a connect to AF_UNSPEC.
    #[arg(long)]
    after_leaving: Option<SocketAddr>,
    /// The source address.
    #[arg(long)]
    bind: Option<IpAddr>,
    /// The source port, which may be in use by connections to elsewhere; any if 0.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// The network device.
    #[arg(long)]
    device: Option<String>,
    /// Enters this network namespace right before it makes the socket.
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Goes back to its own network namespace when the socket is made.
    #[arg(long, requires = "netns")]
    comes_back: bool,
    /// Says nothing of its sockets.
    #[arg(skip)]
    pub(crate) quiet: bool,
}

impl Target {
    pub(crate) fn address(&self) -> SocketAddr {
        self.mapped(self.address)
    }

    /// The address in the form that the socket takes.
    fn mapped(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(v4) if self.mapped => (v4.to_ipv6_mapped(), address.port()).into(),
            _ => address,
        }
    }

    pub(crate) fn open(&self) -> Result<Socket> {
        let home = File::open("/proc/thread-self/ns/net")?;
        if let Some(netns) = &self.netns {
            setns(File::open(netns).context("opening the namespace")?, CloneFlags::CLONE_NEWNET).context("setns")?;
        }
        let address = self.address();
        let protocol = if self.mptcp { Protocol::MPTCP } else { Protocol::TCP };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)).context("socket")?;
        if self.comes_back {
            setns(home, CloneFlags::CLONE_NEWNET).context("setns")?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes())).context("SO_BINDTODEVICE")?;
        }
        if self.bind.is_some() || self.port != 0 {
            let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let source = SocketAddr::new(self.bind.unwrap_or(any), self.port);
            socket.set_reuse_address(self.port != 0)?;
            socket.bind(&self.mapped(source).into()).context("bind")?;
        }
        Ok(socket)
    }

    /// Connects, sends the first bytes, and says to whom.
    pub(crate) fn connect(&self, first: &[u8]) -> Result<TcpStream> {
        let socket = self.open()?;
        let mut rest = first;
        if let Some(refusing) = self.after_refusal_by {
            match socket.connect(&self.mapped(refusing).into()) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                other => bail!("{refusing} should have refused: {other:?}"),
            }
        }
        if let Some(left) = self.after_leaving {
            socket.connect(&self.mapped(left).into()).context("connect")?;
            let peer = socket.peer_addr()?.as_socket().context("no address")?;
            self.tell(&format!("left {peer}"));
            disconnect(&socket)?;
        }
        if self.nonblocking {
            connect_by_poll(&socket, self.address())?;
        } else if self.fastopen {
            let sent = send_fastopen(&socket, self.address(), first)?;
            rest = &first[sent..];
        } else {
            socket.connect(&self.address().into()).context("connect")?;
        }
        let protocol = socket.protocol()?.map_or(0, i32::from);
        let mut stream = TcpStream::from(socket);
        let (peer, own) = (stream.peer_addr()?, stream.local_addr()?);
        self.tell(&format!("peername {peer}\nsockname {own}\nprotocol {protocol}"));
        if self.device.is_some() {
            let device = SockRef::from(&stream).device()?.unwrap_or_default();
            self.tell(&format!("device {}", String::from_utf8_lossy(&device)));
        }
        stream.write_all(rest)?;
        Ok(stream)
    }

    fn tell(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

fn connect_by_poll(socket: &Socket, address: SocketAddr) -> Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => bail!("connect should be in progress: {other:?}"),
    }
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, as announced.
    if unsafe { libc::poll(&raw mut polled, 1, PATIENCE.as_millis() as libc::c_int) } != 1 {
        bail!("the connect does not end");
    }
    if let Some(error) = socket.take_error()? {
        return Err(error).context("connect");
    }
    Ok(socket.set_nonblocking(false)?)
}

fn disconnect(socket: &Socket) -> Result<()> {
    // SAFETY: sockaddr is plain data, for which zeroes are a valid value: AF_UNSPEC.
    let unspecified: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of_val(&unspecified) as libc::socklen_t;
    // SAFETY: the address has the announced length.
    if unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, length) } != 0 {
        return Err(io::Error::last_os_error()).context("connect to AF_UNSPEC");
    }
    Ok(())
}

fn send_fastopen(socket: &Socket, address: SocketAddr, bytes: &[u8]) -> Result<usize> {
    let address = socket2::SockAddr::from(address);
    // SAFETY: buffer and address are valid for the announced lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_FASTOPEN,
            address.as_ptr().cast(),
            address.len(),
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error()).context("sendto with MSG_FASTOPEN")
}
