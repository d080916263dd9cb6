//! What the connect hooks look up.

use crate::{
    address::{IpBytes, V4_MAPPED_BITS},
    map_type,
};

/// Data part of a key of the `DESTINATIONS` trie: a port, a family, then an address, so that prefixes are prefixes of
/// addresses of one family on one port. Without the family `::/0` would match every v4-mapped address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Destination {
    /// The port in network order.
    pub port: [u8; 2],
    /// The address's family: 4 or 6.
    pub family: [u8; 2],
    /// The address, or the network's address.
    pub address: IpBytes,
}
map_type!(Destination, 2 + 2 + 16);

/// Entries of the `DESTINATIONS` trie at most.
pub const MAX_DESTINATIONS: usize = 1 << 20;

/// Why a destination is intercepted; the value of the `DESTINATIONS` trie.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Capture {
    /// It is not: a network that is excluded from a port's interception.
    Excluded = 0,
    /// A configured host has this address.
    Host = 1,
    /// All connections to this port are.
    Port = 2,
}

impl Capture {
    /// The reason with this number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Excluded),
            1 => Some(Self::Host),
            2 => Some(Self::Port),
            _ => None,
        }
    }
}

impl Destination {
    /// Length in bits of a key that matches exactly one address.
    pub const BITS: u32 = Self::BITS_BEFORE_ADDRESS + 128;

    const BITS_BEFORE_ADDRESS: u32 = 16 + 16;

    /// The key of `address:port`, with the port in network order.
    #[inline(always)]
    pub const fn new(address: IpBytes, port: [u8; 2]) -> Self {
        let family = if address.as_v4().is_some() { [0, 4] } else { [0, 6] };
        Self { port, family, address }
    }

    /// Length in bits of the key of a network of this family, `prefix_len` bits long.
    pub const fn prefix_bits(address: &IpBytes, prefix_len: u8) -> u32 {
        let before = if address.as_v4().is_some() { V4_MAPPED_BITS } else { 0 };
        Self::BITS_BEFORE_ADDRESS + before + prefix_len as u32
    }
}
