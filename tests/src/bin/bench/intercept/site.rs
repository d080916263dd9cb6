//! What is compared: ways for a connection to get to a listener on its own loopback.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, SockRef, Socket, Type};

use super::kernel::Maps;

/// A way to a listener. The loopback address is reached more cheaply than another one of the pod, whoever intercepts: each
/// is compared with its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the pod's own address; no program and no rule is asked.
    Own,
    /// The programs of egress look at it, and let it go where it was going.
    OwnPastEgress,
    /// A rule of iptables looks at it, and lets it go where it was going.
    OwnPastIptables,
    /// To a loopback address; no program and no rule is asked.
    Loopback,
    /// The programs of egress redirect it there.
    LoopbackByEgress,
    /// A rule of iptables redirects it there.
    LoopbackByIptables,
}

impl Way {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [
        Self::Own,
        Self::OwnPastEgress,
        Self::OwnPastIptables,
        Self::Loopback,
        Self::LoopbackByEgress,
        Self::LoopbackByIptables,
    ];

    /// What the table calls it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Own => "own address: no interception",
            Self::OwnPastEgress => "own address: let past by egress",
            Self::OwnPastIptables => "own address: let past by iptables",
            Self::Loopback => "loopback: no interception",
            Self::LoopbackByEgress => "loopback: redirected by egress",
            Self::LoopbackByIptables => "loopback: redirected by iptables",
        }
    }

    /// The way without interception that it is compared with.
    pub(crate) fn base(self) -> Self {
        match self {
            Self::Own | Self::OwnPastEgress | Self::OwnPastIptables => Self::Own,
            Self::Loopback | Self::LoopbackByEgress | Self::LoopbackByIptables => Self::Loopback,
        }
    }

    /// Whether a program or a rule has to know the destination.
    fn is_redirected(self) -> bool {
        matches!(self, Self::LoopbackByEgress | Self::LoopbackByIptables)
    }
}

/// Where sites are made.
pub(crate) struct Grounds<'a> {
    /// The agent's.
    pub(crate) maps: &'a Maps,
    /// The cgroup that the agent's programs are attached to.
    pub(crate) intercepted: &'a Path,
    /// One without programs.
    pub(crate) other: &'a Path,
    /// A network namespace that the agent serves.
    pub(crate) pod: &'a Path,
    /// One with rules of iptables.
    pub(crate) pod_with_iptables: &'a Path,
}

/// A way with its listener.
pub(crate) struct Site<'a> {
    /// Which.
    pub(crate) way: Way,
    /// Where clients connect to.
    pub(crate) destination: SocketAddr,
    listener: TcpListener,
    netns: File,
    procs: PathBuf,
    maps: &'a Maps,
}

impl<'a> Site<'a> {
    /// Makes the way for clients of the family of `configured`, which is the destination of those that are redirected.
    pub(crate) fn create(way: Way, configured: SocketAddr, grounds: &Grounds<'a>) -> Result<Self> {
        let (cgroup, netns) = match way {
            Way::Own | Way::Loopback => (grounds.other, grounds.pod),
            Way::OwnPastEgress | Way::LoopbackByEgress => (grounds.intercepted, grounds.pod),
            Way::OwnPastIptables | Way::LoopbackByIptables => (grounds.other, grounds.pod_with_iptables),
        };
        // The listener is not subject to the programs, as the agent's is not.
        enter_cgroup(&grounds.other.join("cgroup.procs"))?;
        let netns = File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
        enter_netns(&netns)?;
        let listener = listen(match way.base() {
            Way::Own => own_address(configured)?,
            _ if configured.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
            _ => Ipv6Addr::LOCALHOST.into(),
        })?;
        let destination = if way.is_redirected() { configured } else { listener.local_addr()? };
        match way {
            Way::LoopbackByEgress => grounds.maps.redirect_to(&listener)?,
            Way::LoopbackByIptables => iptables_redirect(configured, listener.local_addr()?.port())?,
            Way::Own | Way::OwnPastEgress | Way::OwnPastIptables | Way::Loopback => {}
        }
        Ok(Self { way, destination, listener, netns, procs: cgroup.join("cgroup.procs"), maps: grounds.maps })
    }

    /// From now on this process's sockets go this way.
    pub(crate) fn enter(&self) -> Result<()> {
        enter_netns(&self.netns)?;
        enter_cgroup(&self.procs)
    }

    /// A client's socket, to be connected.
    pub(crate) fn socket(&self) -> Result<Socket> {
        Socket::new(Domain::for_address(self.destination), Type::STREAM, None).context("making a socket")
    }

    /// Takes the connection that was just made. It is reset when it is closed, so that no port stays in use.
    pub(crate) fn accept(&self) -> Result<(TcpStream, SocketAddr)> {
        self.listener.accept().with_context(|| format!("{}: no connection came", self.way.label()))
    }

    /// Learns where a connection was going, as a proxy has to.
    pub(crate) fn learn_origin(&self, accepted: &TcpStream, client: SocketAddr) -> Result<()> {
        let origin = match self.way {
            Way::LoopbackByEgress => self.maps.take_origin(client, self.listener.local_addr()?.port())?,
            Way::LoopbackByIptables => {
                SockRef::from(accepted).original_dst_v4().context("SO_ORIGINAL_DST")?.as_socket()
            }
            Way::Own | Way::OwnPastEgress | Way::OwnPastIptables | Way::Loopback => return Ok(()),
        };
        ensure!(origin == Some(self.destination), "{}: the origin is {origin:?}", self.way.label());
        Ok(())
    }

    /// An open connection.
    pub(crate) fn connection(&self) -> Result<Connection> {
        /// All is in the kernel when it is waited for; what is not there by then never comes.
        const PATIENCE: Option<Duration> = Some(Duration::from_secs(5));
        let client = self.socket()?;
        // As large as may be. The listener's is as large, by the time that it matters.
        client.set_send_buffer_size(1 << 20)?;
        client.connect(&self.destination.into()).with_context(|| format!("connecting to {}", self.destination))?;
        let (server, address) = self.accept()?;
        self.learn_origin(&server, address)?;
        let client = TcpStream::from(client);
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(PATIENCE)?;
            end.set_write_timeout(PATIENCE)?;
        }
        Ok(Connection { client, server })
    }
}

/// Both ends of a connection.
pub(crate) struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    /// Sends requests of 200 bytes, each answered with 1000.
    pub(crate) fn requests(&mut self, count: u32) -> Result<()> {
        let (mut request, mut response) = ([0; 200], [0; 1000]);
        (0..count).try_for_each(|_| {
            self.client.write_all(&request)?;
            self.server.read_exact(&mut request)?;
            self.server.write_all(&response)?;
            Ok(self.client.read_exact(&mut response)?)
        })
    }

    /// Sends megabytes to the listener.
    pub(crate) fn megabytes(&mut self, count: u32) -> Result<()> {
        const MEGABYTE: usize = 1_000_000;
        /// Less than fits into the socket's buffers: nobody reads while it is written.
        const CHUNK: usize = 50_000;
        let mut chunk = vec![0; CHUNK];
        (0..count as usize * MEGABYTE / CHUNK).try_for_each(|_| {
            self.client.write_all(&chunk)?;
            Ok(self.server.read_exact(&mut chunk)?)
        })
    }

    /// Has the client ask whom it is connected to.
    pub(crate) fn peername(&self) -> Result<SocketAddr> {
        Ok(self.client.peer_addr()?)
    }
}

fn enter_netns(netns: &File) -> Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET).context("entering a network namespace")
}

fn enter_cgroup(procs: &Path) -> Result<()> {
    // 0 stands for the writing process.
    fs::write(procs, "0").with_context(|| format!("entering the cgroup of {}", procs.display()))
}

fn listen(address: IpAddr) -> Result<TcpListener> {
    /// As the agent's, and more than are ever waiting.
    const BACKLOG: i32 = 4096;
    let address = SocketAddr::new(address, 0);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Accepted connections have it too: they are reset when they are closed.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&address.into()).with_context(|| format!("binding {address}"))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The address from which this network namespace reaches `destination`. Nothing is sent.
fn own_address(destination: SocketAddr) -> Result<IpAddr> {
    let any = if destination.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(destination).with_context(|| format!("no route to {destination}"))?;
    Ok(socket.local_addr()?.ip())
}

/// One rule, which is as cheap as it gets: meshes have a dozen.
fn iptables_redirect(destination: SocketAddr, port: u16) -> Result<()> {
    let rule = format!(
        "--wait -t nat -A OUTPUT -p tcp -d {} --dport {} -j REDIRECT --to-ports {port}",
        destination.ip(),
        destination.port()
    );
    let mut command = Command::new("iptables");
    let output = command.args(rule.split(' ')).output().context("running iptables (package iptables)")?;
    if !output.status.success() {
        bail!("iptables {rule}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
