//! What the connect hooks look up.

use crate::{
    address::{IpBytes, V4_MAPPED_BITS},
    map_type,
};

/// Data part of a key of the `DESTINATIONS` trie: a port, then an address, so that prefixes are prefixes of addresses
/// on one port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Destination {
    /// The port in network order.
    pub port: [u8; 2],
    /// The address, or the network's address.
    pub address: IpBytes,
}
map_type!(Destination, 2 + 16);

impl Destination {
    /// Length in bits of a key that matches exactly one address.
    pub const BITS: u32 = 16 + 128;

    /// The key of `address:port`, with the port in host order.
    #[inline(always)]
    pub const fn new(address: IpBytes, port: u16) -> Self {
        Self { port: port.to_be_bytes(), address }
    }

    /// Length in bits of the key of a network of this family, `prefix_len` bits long.
    pub const fn prefix_bits(address: &IpBytes, prefix_len: u8) -> u32 {
        let before = if address.as_v4().is_some() { V4_MAPPED_BITS } else { 0 };
        16 + before + prefix_len as u32
    }
}
