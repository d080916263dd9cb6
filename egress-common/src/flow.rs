//! How an accepted connection finds its origin.

use crate::{address::IpBytes, map_type};

/// What an origin is found by: a redirected connection, of which there is one at a time.
///
/// The client's port alone would not do: two network namespaces use the same one at the same time, and so do two connections of one, to
/// the listeners of two agents, where one of them hangs and the other has come in its place.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    /// Cookie of the client's network namespace (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// The client's address, as the listener sees it.
    pub address: IpBytes,
    /// The client's port in network order.
    pub port: [u8; 2],
    /// The port that the agent listens at, in network order.
    pub listener: [u8; 2],
    /// Zero; keeps the layout free of padding.
    pub reserved: [u8; 4],
}
map_type!(Flow, 8 + 16 + 2 + 2 + 4);

/// Redirected sockets of one network namespace that can be connecting at a time, so that none takes the room of the others. More
/// than its listeners' queues have room for.
pub const CONNECTING_PER_NETNS: u64 = 8192;

impl Flow {
    /// The flow of the client at `address:port` in the network namespace with this cookie, to the listener at that port (host order both).
    #[inline(always)]
    pub const fn new(netns: u64, address: IpBytes, port: u16, listener: u16) -> Self {
        Self { netns, address, port: port.to_be_bytes(), listener: listener.to_be_bytes(), reserved: [0; 4] }
    }
}
