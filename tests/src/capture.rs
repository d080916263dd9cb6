//! What an eavesdropper on the pod's link would see.

use std::{
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

mod parse;
mod trip;

pub use parse::Segment;
pub use trip::Connection;

/// A running capture of all packets of one device. It sees what was sent before it started: nothing; after: everything.
#[derive(Debug)]
pub struct Capture {
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<Vec<Packet>>>,
}

/// One packet, from its IP header on.
#[derive(Clone, Debug)]
pub struct Packet {
    /// When the capture read it.
    pub at: Instant,
    /// Whether the device sent it, or received it.
    pub outgoing: bool,
    /// The packet.
    pub bytes: Vec<u8>,
}

impl Capture {
    /// Starts to capture on `device` in `netns`. When this returns, no packet is missed any more.
    pub fn start(netns: &Netns, device: &str) -> Result<Self> {
        Self::start_keeping(netns, device, |_| true)
    }

    /// Starts to capture what comes from a port or goes to it. The rest is let go at once: for long captures of much traffic.
    pub fn of_port(netns: &Netns, device: &str, port: u16) -> Result<Self> {
        Self::start_keeping(netns, device, move |packet| is_of_port(packet, port))
    }

    fn start_keeping(netns: &Netns, device: &str, keep: impl Fn(&Packet) -> bool + Send + 'static) -> Result<Self> {
        let socket = Arc::new(netns.run(|| open(device))?);
        let stop = Arc::new(AtomicBool::new(false));
        let (reading, stopped) = (Arc::clone(&socket), Arc::clone(&stop));
        let reader = thread::spawn(move || read_until(&reading, &stopped, keep));
        Ok(Self { socket, stop, reader: Some(reader) })
    }

    /// Ends the capture. Packets that were sent before this call are in the result, or it fails.
    pub fn stop(mut self) -> Result<Trace> {
        let packets = self.finish().context("the capture was stopped before")?;
        let dropped = dropped(&self.socket)?;
        if dropped > 0 {
            bail!("the capture missed {dropped} packets, so it proves nothing");
        }
        Ok(Trace { packets })
    }

    fn finish(&mut self) -> Option<Vec<Packet>> {
        self.stop.store(true, Ordering::Release);
        self.reader.take().map(|reader| reader.join().expect("the capture's thread does not panic"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What was captured.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The packets, oldest first.
    pub packets: Vec<Packet>,
}

impl Trace {
    /// Whether the bytes are anywhere on the wire, be it in one packet or spread over several of a TCP connection.
    pub fn contains(&self, needle: &[u8]) -> bool {
        let holds = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        self.packets.iter().any(|packet| holds(&packet.bytes))
            || self.connections().iter().any(|connection| holds(&connection.sent) || holds(&connection.received))
    }

    /// The TCP segments.
    pub fn segments(&self) -> Vec<Segment> {
        self.packets.iter().filter_map(Segment::parse).collect()
    }

    /// The TCP connections, in the order of their first segment.
    pub fn connections(&self) -> Vec<Connection> {
        trip::connections(&self.segments())
    }

    /// The connections to a port.
    pub fn connections_to_port(&self, port: u16) -> Vec<Connection> {
        self.connections().into_iter().filter(|connection| connection.server.port() == port).collect()
    }

    /// Everything that was sent to a destination port, TCP or not, or came from it: for "nothing at all went to port 80".
    pub fn packets_of_port(&self, port: u16) -> usize {
        self.packets.iter().filter(|packet| is_of_port(packet, port)).count()
    }

    /// Round trips of all connections together.
    pub fn round_trips(&self) -> usize {
        self.connections().iter().map(|connection| connection.round_trips).sum()
    }
}

fn is_of_port(packet: &Packet, port: u16) -> bool {
    parse::ends(packet).is_some_and(|(from, to)| from.port() == port || to.port() == port)
}

fn open(device: &str) -> Result<OwnedFd> {
    let buffer: libc::c_int = 64 * 1024 * 1024;
    let all = (libc::ETH_P_ALL as u16).to_be();
    let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("no device {device}"))?;
    // Of protocol 0 until it is bound, so that it does not see other devices' packets. SOCK_DGRAM: without the link's header,
    // which a TUN device does not have.
    // SAFETY: no memory is involved.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        bail!("opening a packet socket: {}", std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the value has the announced length.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const buffer).cast(),
            size_of_val(&buffer) as libc::socklen_t,
        );
    }
    // SAFETY: sockaddr_ll is plain data, for which zeroes are a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index.cast_signed();
    // SAFETY: the address has the announced length.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    if bound != 0 {
        bail!("binding a packet socket to {device}: {}", std::io::Error::last_os_error());
    }
    Ok(socket)
}

fn read_until(socket: &OwnedFd, stop: &AtomicBool, keep: impl Fn(&Packet) -> bool) -> Vec<Packet> {
    const POLL_MILLISECONDS: libc::c_int = 20;
    let mut packets = Vec::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        // Asked before the queue is seen empty: what was sent before the stop is read after it.
        let last_round = stop.load(Ordering::Acquire);
        while let Some(packet) = receive(socket, &mut buffer) {
            if keep(&packet) {
                packets.push(packet);
            }
        }
        if last_round {
            return packets;
        }
        let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, as announced.
        unsafe { libc::poll(&raw mut polled, 1, POLL_MILLISECONDS) };
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<Packet> {
    // SAFETY: sockaddr_ll is plain data, for which zeroes are a valid value.
    let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&from) as libc::socklen_t;
    // SAFETY: buffer and address have the announced lengths.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    let received = usize::try_from(received).ok()?;
    Some(Packet {
        at: Instant::now(),
        outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
        bytes: buffer[..received].to_vec(),
    })
}

fn dropped(socket: &OwnedFd) -> Result<u32> {
    // SAFETY: tpacket_stats is plain data, for which zeroes are a valid value.
    let mut stats: libc::tpacket_stats = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: `stats` has the announced length.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    if status != 0 {
        bail!("PACKET_STATISTICS: {}", std::io::Error::last_os_error());
    }
    Ok(stats.tp_drops)
}
