//! Address ranges.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    str::FromStr,
};

/// Bits before the IPv4 address in an IPv4-mapped one.
const MAPPED_BITS: u8 = 96;

/// An address range such as `203.0.113.0/24`; the bits beyond the prefix are zero. One that is written as IPv4-mapped addresses
/// is one of IPv4, as connections to them are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// The first address of the range.
    pub address: IpAddr,
    /// How many leading bits the addresses of the range share.
    pub prefix_len: u8,
}

/// Why a text is not a [`Cidr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCidr {
    /// Not an address.
    #[error("{0:?} is not an IP address or a range such as 203.0.113.0/24")]
    Address(String),
    /// Not a prefix length, or not one that such an address can have.
    #[error("{prefix_len:?} is not a prefix length; use {} to {}", .allowed.start(), .allowed.end())]
    PrefixLen {
        /// What was written.
        prefix_len: String,
        /// What such an address allows.
        allowed: RangeInclusive<u8>,
    },
}

impl Cidr {
    /// The range of all addresses that share the first `prefix_len` bits with `address`; None if it has not so many.
    pub fn of(address: IpAddr, prefix_len: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix_len.into())).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & mask).into()
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix_len.into())).unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & mask).into()
            }
        };
        (prefix_len <= max_prefix_len(address)).then_some(Self { address, prefix_len })
    }

    /// Whether an address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::of(address, self.prefix_len) == Some(*self)
    }

    /// Whether the range is a single address.
    pub fn is_single(&self) -> bool {
        self.prefix_len == max_prefix_len(self.address)
    }
}

fn max_prefix_len(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Self, InvalidCidr> {
        let (address, prefix_len) = match text.split_once('/') {
            Some((address, prefix_len)) => (address, Some(prefix_len)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| InvalidCidr::Address(text.to_owned()))?;
        let address = written.to_canonical();
        // A shorter prefix of mapped addresses would be of others as well.
        let before = if written == address { 0 } else { MAPPED_BITS };
        let max = before + max_prefix_len(address);
        let digits = prefix_len.unwrap_or_default();
        let parsed = if prefix_len.is_none() { Some(max) } else { digits.parse().ok() };
        parsed
            .and_then(|prefix_len: u8| Self::of(address, prefix_len.checked_sub(before)?))
            .ok_or_else(|| InvalidCidr::PrefixLen { prefix_len: digits.to_owned(), allowed: before..=max })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_masked() {
        for (text, range) in [
            ("203.0.113.7", "203.0.113.7/32"),
            ("203.0.113.7/24", "203.0.113.0/24"),
            ("203.0.113.7/0", "0.0.0.0/0"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("2001:db8:1::1/32", "2001:db8::/32"),
            ("::1/0", "::/0"),
            ("::ffff:203.0.113.7", "203.0.113.7/32"),
            ("::ffff:203.0.113.7/120", "203.0.113.0/24"),
            ("::ffff:203.0.113.7/96", "0.0.0.0/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().expect(text).to_string(), range);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("cnn.com", "\"cnn.com\" is not an IP address or a range such as 203.0.113.0/24"),
            ("203.0.113.0/33", "\"33\" is not a prefix length; use 0 to 32"),
            ("2001:db8::/129", "\"129\" is not a prefix length; use 0 to 128"),
            ("::ffff:203.0.113.0/24", "\"24\" is not a prefix length; use 96 to 128"),
            ("203.0.113.0/", "\"\" is not a prefix length; use 0 to 32"),
        ] {
            assert_eq!(text.parse::<Cidr>().expect_err(text).to_string(), reason);
        }
    }
}
