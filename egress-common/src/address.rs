//! Socket addresses in network byte order.

/// An IP address as sixteen bytes in network order; IPv4 is v4-mapped (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2).
///
/// One shape for both families lets the hooks classify a v4 socket, a v6 socket, and a v6 socket that speaks IPv4, by
/// one rule.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct IpBytes(pub [u8; 16]);

/// Bits before the IPv4 address in a v4-mapped one.
pub const V4_MAPPED_BITS: u32 = 96;

impl IpBytes {
    /// 127.0.0.1.
    pub const LOOPBACK4: Self = Self::from_v4([127, 0, 0, 1]);
    /// ::1.
    pub const LOOPBACK6: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// The v4-mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// Whether a connection to it stays on the machine: 127.0.0.0/8, ::1, and the unspecified addresses, which Linux
    /// takes for the former two.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        match self.as_v4() {
            Some([127, ..] | [0, 0, 0, 0]) => true,
            Some(_) => false,
            None => matches!(self.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 | 1]),
        }
    }

    /// The IPv4 address, where this is a v4-mapped one.
    #[inline(always)]
    pub const fn as_v4(&self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }
}

#[cfg(feature = "user")]
mod user {
    use std::net::{IpAddr, Ipv6Addr};

    use super::IpBytes;

    impl From<IpAddr> for IpBytes {
        fn from(address: IpAddr) -> Self {
            match address {
                IpAddr::V4(v4) => Self::from_v4(v4.octets()),
                IpAddr::V6(v6) => Self(v6.octets()),
            }
        }
    }

    impl From<IpBytes> for IpAddr {
        /// A v4-mapped address becomes an IPv4 one.
        fn from(bytes: IpBytes) -> Self {
            Ipv6Addr::from(bytes.0).to_canonical()
        }
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for text in ["192.0.2.7", "2001:db8::7", "::1", "127.0.0.1"] {
            let address: IpAddr = text.parse().expect("a literal address");
            assert_eq!(IpAddr::from(IpBytes::from(address)), address);
        }
        assert_eq!(IpBytes::from("::ffff:192.0.2.7".parse::<IpAddr>().expect("literal")).as_v4(), Some([192, 0, 2, 7]));
        assert_eq!(IpBytes::LOOPBACK6.as_v4(), None);
    }

    #[test]
    fn what_stays_on_the_machine_is_known() {
        let check = |text: &str, expected| {
            let address: IpAddr = text.parse().expect("a literal address");
            assert_eq!(IpBytes::from(address).is_loopback(), expected, "{text}");
        };
        for local in ["127.0.0.1", "127.255.0.9", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
            check(local, true);
        }
        for remote in ["128.0.0.1", "1.0.0.0", "::2", "2001:db8::1", "::ffff:192.0.2.1"] {
            check(remote, false);
        }
    }
}
