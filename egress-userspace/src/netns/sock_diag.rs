//! The connected sockets in a network namespace, as the kernel lists them (sock_diag(7)).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, Nla as _,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SOCK_DIAG_BY_FAMILY, SockDiagDestroy, SockDiagMessage, TCP_SYN_SENT,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use super::Netns;

// Attributes of linux/inet_diag.h and linux/sock_diag.h that the crate has no names for.
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Those in which an application can still send or receive. A datagram socket that is connected counts as established.
const STATES: StateFlags = StateFlags::ESTABLISHED
    .union(StateFlags::SYN_SENT)
    .union(StateFlags::FIN_WAIT1)
    .union(StateFlags::FIN_WAIT2)
    .union(StateFlags::CLOSE_WAIT);

/// What a socket is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => IPPROTO_TCP,
            Self::Udp => IPPROTO_UDP,
        }
    }
}

/// Names a socket (SO_COOKIE); never used again once the socket is gone.
pub type SocketCookie = [u8; 8];

/// A connected socket.
#[derive(Debug)]
pub struct Connection {
    /// Its own end. A v4-mapped address is an IPv4 one here.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Id of the cgroup that its socket was made in, by which the hooks go.
    pub cgroup: Option<u64>,
    /// Whether its socket has an entry in the storage that was asked for. The kernel tells that of TCP alone.
    pub stored: bool,
    /// Whether a process holds its socket, rather than that what is left of it is on its way.
    pub held: bool,
    /// Whether it is still to be connected.
    pub connecting: bool,
    protocol: Protocol,
    family: u8,
    id: SocketId,
}

/// Asks the kernel about one network namespace.
pub struct SockDiag(Socket);

impl SockDiag {
    /// Opens a netlink socket in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or we are out of descriptors.
    pub fn open(netns: &Netns) -> io::Result<Self> {
        netns.run(|| Socket::new(NETLINK_SOCK_DIAG)).map(Self)
    }

    /// Lists the connected sockets of both families. `storage` is a map of socket storage.
    ///
    /// # Errors
    /// The kernel has no sock_diag for the protocol.
    pub fn connections(&self, protocol: Protocol, storage: BorrowedFd<'_>) -> io::Result<Vec<Connection>> {
        let mut connections = Vec::new();
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let dump = Dump { request: request(protocol, family, socket_id), storage };
            connections.extend(self.ask(NLM_F_DUMP, protocol, dump)?);
        }
        Ok(connections)
    }

    /// Aborts a connection: both ends see it break off. A datagram socket has an error, and is connected no more. Says
    /// whether it was still there.
    ///
    /// # Errors
    /// The kernel cannot do it (CONFIG_INET_DIAG_DESTROY).
    pub fn destroy(&self, connection: &Connection) -> io::Result<bool> {
        let request = request(connection.protocol, connection.family, connection.id.clone());
        let destroy = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
        match self.ask(NLM_F_ACK, connection.protocol, destroy) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn ask<M>(&self, flags: u16, protocol: Protocol, message: M) -> io::Result<Vec<Connection>>
    where
        M: NetlinkSerializable,
    {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut connections = Vec::new();
        loop {
            let (received, _) = self.0.recv_from_full()?;
            if read(&received, protocol, &mut connections)? {
                return Ok(connections);
            }
        }
    }
}

/// Adds the connections in one of the kernel's answers to others. Says whether the answer is the last.
///
/// # Errors
/// It is malformed, or is an error itself.
pub fn read(answer: &[u8], protocol: Protocol, connections: &mut Vec<Connection>) -> io::Result<bool> {
    let mut rest = answer;
    while !rest.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
        // Messages begin at multiples of four bytes (netlink(7)).
        rest = rest.get((message.header.length as usize).next_multiple_of(4)..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                connections.push(Connection::new(protocol, &response));
            }
            // A kernel that cannot list says so only at the end.
            NetlinkPayload::Done(done) if done.code < 0 => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_abs()));
            }
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => match error.code {
                // `to_io` panics at a number that has no opposite.
                Some(code) => return Err(io::Error::from_raw_os_error(code.get().saturating_abs())),
                None => return Ok(true),
            },
            _ => {}
        }
    }
    Ok(false)
}

fn request(protocol: Protocol, family: u8, socket_id: SocketId) -> InetRequest {
    let (protocol, extensions) = (protocol.number(), ExtensionFlags::empty());
    InetRequest { family, protocol, extensions, states: STATES, socket_id }
}

impl Connection {
    /// The socket's name.
    pub fn cookie(&self) -> SocketCookie {
        self.id.cookie
    }

    fn new(protocol: Protocol, response: &InetResponse) -> Self {
        let (family, id) = (response.header.family, response.header.socket_id.clone());
        let end = |address: IpAddr, port| SocketAddr::new(address.to_canonical(), port);
        let (mut cgroup, mut stored) = (None, false);
        for attribute in &response.nlas {
            let Nla::Other(attribute) = attribute else { continue };
            match attribute.kind() & !NLA_F_NESTED {
                INET_DIAG_CGROUP_ID if attribute.value_len() == size_of::<u64>() => {
                    let mut id = [0; size_of::<u64>()];
                    attribute.emit_value(&mut id);
                    cgroup = Some(u64::from_ne_bytes(id));
                }
                // Left out where there is no entry.
                INET_DIAG_SK_BPF_STORAGES => stored = true,
                _ => {}
            }
        }
        let local = end(id.source_address, id.source_port);
        let (remote, held) = (end(id.destination_address, id.destination_port), response.header.inode != 0);
        let connecting = response.header.state == TCP_SYN_SENT;
        Self { local, remote, cgroup, stored, held, connecting, protocol, family, id }
    }
}

/// A request that also asks for an entry of socket storage.
struct Dump<'a> {
    request: InetRequest,
    storage: BorrowedFd<'a>,
}

impl Dump<'_> {
    fn storages(&self) -> DefaultNla {
        let map = DefaultNla::new(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, self.storage.as_raw_fd().to_ne_bytes().to_vec());
        let mut nested = vec![0; map.buffer_len()];
        map.emit(&mut nested);
        DefaultNla::new(INET_DIAG_REQ_SK_BPF_STORAGES | NLA_F_NESTED, nested)
    }
}

impl NetlinkSerializable for Dump<'_> {
    fn message_type(&self) -> u16 {
        SOCK_DIAG_BY_FAMILY
    }

    fn buffer_len(&self) -> usize {
        self.request.buffer_len() + self.storages().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (request, storages) = buffer.split_at_mut(self.request.buffer_len());
        self.request.emit(request);
        self.storages().emit(storages);
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR};

    use super::*;

    #[test]
    fn an_error_is_what_the_kernel_says() {
        let check = |code: i32, expected: Result<bool, i32>| {
            for kind in [NLMSG_ERROR, NLMSG_DONE] {
                let mut answer = vec![0; 20];
                answer[..4].copy_from_slice(&20_u32.to_ne_bytes());
                answer[4..6].copy_from_slice(&kind.to_ne_bytes());
                answer[16..].copy_from_slice(&code.to_ne_bytes());
                let read = read(&answer, Protocol::Tcp, &mut Vec::new());
                assert_eq!(read.map_err(|error| error.raw_os_error().unwrap_or_default()), expected, "{kind}");
            }
        };
        check(0, Ok(true));
        check(-libc::ENOENT, Err(libc::ENOENT));
        check(i32::MIN, Err(i32::MAX));
    }
}
