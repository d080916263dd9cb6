//! The one factory of sockets. Each is made in the network namespace that it works in, and marked as ours before it can
//! connect or be found, so that the connect hooks leave it alone.

use std::{
    cell::RefCell,
    collections::HashMap,
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

use crate::{
    kernel::{KernelError, OwnSockets},
    netns::{Netns, NetnsCookie},
    worker::PodLoad,
};

/// As many pending connections as the kernel allows (`net.core.somaxconn` caps it).
const BACKLOG: i32 = 4096;
/// Finds peers that vanished without a word, and that firewalls have forgotten, within two minutes: the system's own interval and
/// count take ten more.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// What is kept for an application that does not read on, in bytes. The kernel doubles it, for what a packet takes beside its content.
const UNSENT: usize = 128 * 1024;

/// How many sockets are made at once at most.
const MOST_AT_ONCE: usize = 16;

/// The state of a TCP connection that has ended (`include/net/tcp_states.h`).
const TCP_CLOSE: u8 = 7;

/// Where an application connects from, and upstream sockets in its place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network namespace.
    pub netns: Netns,
    /// Index of the device that its socket was bound to; 0 if none.
    pub device: u32,
    /// What there is of its network namespace.
    pub load: Arc<PodLoad>,
}

/// Makes and marks sockets. One for each thread.
pub struct SocketFactory {
    own: OwnSockets,
    /// By namespace, and whether for IPv6.
    spare: RefCell<HashMap<(NetnsCookie, bool), Spare>>,
}

/// Sockets that were made beside others. To enter a network namespace and come back costs more than to make a socket there, so where more
/// are needed before long some are made at once.
#[derive(Default)]
struct Spare {
    sockets: Vec<Socket>,
    /// How many were needed since the last tidying.
    needed: usize,
}

impl SocketFactory {
    /// A factory that marks with `own`.
    pub fn new(own: OwnSockets) -> Self {
        Self { own, spare: RefCell::default() }
    }

    /// Lets go of what was made beside what was needed, which keeps network namespaces there. To be called each second or so.
    pub fn tidy(&self) {
        self.spare.take();
    }

    /// The same of one that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.spare.borrow_mut().retain(|(of, _), _| *of != netns);
    }

    /// Connects to `remote` from where the application would.
    ///
    /// # Errors
    /// The connect fails, or the socket cannot be made or marked; an unmarked socket is never used.
    pub async fn connect(&self, from: &Place, remote: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket_within(&from.netns, remote)?;
        if from.device != 0 {
            bind_to_device(&socket, from.device)?;
        }
        socket.set_tcp_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
        let keepalive = keepalive.with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
        match socket.connect(&remote.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let stream = TcpStream::from_std(socket.into())?;
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }

    /// Listens on any free port of the loopback address of one family inside `netns`.
    ///
    /// The port is bound exclusively: with SO_REUSEPORT another process of the same user could join it and be handed
    /// connections that were meant for us.
    ///
    /// # Errors
    /// The family is disabled there, or the socket cannot be made or marked.
    pub fn listen(&self, netns: &Netns, loopback: IpAddr) -> io::Result<std::net::TcpListener> {
        netns.run(|| {
            let address = SocketAddr::new(loopback, 0);
            let socket = self.stream_socket(Domain::for_address(address))?;
            // In a namespace that was just made the loopback interface may still be down.
            match loopback {
                IpAddr::V4(_) => socket.set_freebind_v4(true)?,
                IpAddr::V6(_) => socket.set_freebind_v6(true)?,
            }
            // Accepted sockets have this from the listener: what is cut off by our end, be it by SIGKILL, is reset, and cannot
            // be taken for a response that its close completes. See `close_in_order`.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
    }

    /// One that is there, or the first of some: as many more as were needed since the last tidying, so that no more than that are in vain,
    /// where there is a namespace to be entered.
    fn socket_within(&self, netns: &Netns, remote: SocketAddr) -> io::Result<Socket> {
        let mut spare = self.spare.borrow_mut();
        let spare = spare.entry((netns.cookie(), remote.is_ipv6())).or_default();
        let more = if netns.is_own() { 0 } else { spare.needed.min(MOST_AT_ONCE - 1) };
        spare.needed += 1;
        if let Some(socket) = spare.sockets.pop() {
            return Ok(socket);
        }
        let make = || self.stream_socket(Domain::for_address(remote));
        netns.run(|| {
            let socket = make()?;
            // Where there is no room for so many, others need what there is.
            spare.sockets = (0..more).map(|_| make()).collect::<io::Result<_>>().unwrap_or_default();
            Ok(socket)
        })
    }

    fn stream_socket(&self, domain: Domain) -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        // Of the system's own words it is known what they say of the node.
        let failed = |error: KernelError| {
            error.raw_os_error().map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error)
        };
        self.own.mark(&socket).map_err(failed)?;
        Ok(socket)
    }
}

/// Has an accepted socket, which otherwise is reset by its close, end in order: what was written is delivered, and then its
/// end.
pub fn close_in_order(socket: &impl AsFd) {
    // This cannot fail on a socket.
    let _ = SockRef::from(socket).set_linger(None);
}

/// Has the kernel keep little of what the application has not read yet: else it is up to 4 MiB (`net.ipv4.tcp_wmem`), which are in
/// no cache any more when their turn comes. The way to the application is one within the machine, which needs no more.
pub fn limit_unsent(socket: &impl AsFd) {
    // This cannot fail on a socket.
    let _ = SockRef::from(socket).set_send_buffer_size(UNSENT);
}

/// Has whoever waits for a TCP connection be woken when so many bytes are there, rather than one: or the end, or as many as there is room
/// for (SO_RCVLOWAT of socket(7); `tcp_epollin_ready` of the kernel).
pub fn wake_for(socket: &impl AsFd, bytes: u32) {
    // This cannot fail on a socket.
    let _ = set(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes);
}

/// How many bytes have come on a TCP connection that were not read (FIONREAD, which is SIOCINQ of tcp(7)).
pub fn readable(socket: &impl AsFd) -> u64 {
    let mut count: libc::c_int = 0;
    // SAFETY: the pointer is to a live integer. This cannot fail on such a socket.
    unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    count as u64
}

/// How many bytes of a TCP connection have come from the other end, and have been taken by it.
pub fn moved(socket: &impl AsFd) -> u64 {
    let info = info(socket);
    info.tcpi_bytes_received.wrapping_add(info.tcpi_bytes_acked)
}

/// How much the other end of a TCP connection has taken of what was written, in bytes. None when that is all, or it takes nothing any
/// more.
pub fn taken_of_more(socket: &impl AsFd) -> Option<u64> {
    let info = info(socket);
    let is_all = info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0;
    (info.tcpi_state != TCP_CLOSE && !is_all).then_some(info.tcpi_bytes_acked)
}

/// Whether a TCP connection has ended in both directions, as by a reset.
pub fn is_closed(socket: &impl AsFd) -> bool {
    info(socket).tcpi_state == TCP_CLOSE
}

/// How many connections a listening socket has for whoever accepts them.
pub fn queued(socket: &impl AsFd) -> usize {
    // Of a socket that listens the field says this (`tcp_get_info` of the kernel, and `ss`, which shows it as Recv-Q).
    info(socket).tcpi_unacked as usize
}

/// What the kernel knows of a TCP connection.
fn info(socket: &impl AsFd) -> libc::tcp_info {
    // SAFETY: zeroes are a valid value of these numbers.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: both pointers are to live values, of which the one is as long as the other says. This cannot fail on such a socket.
    unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    info
}

/// Has a listening socket's connections be accepted when something has come on them, be it their end, or after a second
/// (TCP_DEFER_ACCEPT of tcp(7)): else whoever serves one is woken for nothing first. Or at once, also those that have come already: when
/// something comes on them, or within the second.
pub fn defer_accept(listener: &impl AsFd, defers: bool) {
    // This cannot fail on a socket. Without it they are accepted at once.
    let _ = set(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, defers.into());
}

fn bind_to_device(socket: &Socket, index: u32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, index)
}

/// Sets an option of this level.
fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: u32) -> io::Result<()> {
    // SAFETY: the pointer is to a live integer of the length that is given.
    let status = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The loopback addresses that listeners are made on.
pub const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
