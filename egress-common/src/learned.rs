//! What the kernel learns from DNS answers on their way to applications.

use crate::{destination::Destination, map_type};

/// Names of this many characters and their terminator fit in a key. DNS allows 253 (RFC 1035 section 2.3.4).
pub const NAME_LEN: usize = 256;

/// Data part of a key of the `NAMES` trie: a name in lower case, read backwards, so that what a wildcard stands for is a
/// prefix: `moc.elpmaxe.` for `*.example.com`. The key of an exact name ends with a zero, so that it is no prefix of
/// another's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReversedName(pub [u8; NAME_LEN]);
map_type!(ReversedName, NAME_LEN);

/// Ports that a name can be intercepted on.
pub const NAME_PORTS: usize = 8;

/// Value of the `NAMES` trie.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NameRule {
    /// The ports in network order; the rest is zero.
    pub ports: [[u8; 2]; NAME_PORTS],
}
map_type!(NameRule, 2 * NAME_PORTS);

/// Key of the `LEARNED` map: what an application in one network namespace was told.
///
/// It is scoped so that an answer which one pod forges for itself touches no other.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LearnedKey {
    /// Cookie of the network namespace (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// An address that a configured name has there, and a port that it is intercepted on.
    pub destination: Destination,
    /// Zero; keeps the layout free of padding.
    pub reserved: [u8; 4],
}
map_type!(LearnedKey, 8 + 20 + 4);

impl LearnedKey {
    /// The key of a destination in a network namespace.
    #[inline(always)]
    pub const fn new(netns: u64, destination: Destination) -> Self {
        Self { netns, destination, reserved: [0; 4] }
    }
}

/// Value of the `LEARNED` map.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Learned {
    /// When an answer last had it or a connection used it: nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub seen_ns: u64,
}
map_type!(Learned, 8);

/// Entries of the `NAMES` trie at most.
pub const MAX_NAMES: usize = 262_144;

/// Entries of the `LEARNED` map at most.
pub const MAX_LEARNED: usize = 262_144;

/// Entries of the `LEARNED` map that one network namespace can have, so that none takes the room of the others.
pub const LEARNED_PER_NETNS: u32 = 4096;

#[cfg(feature = "user")]
mod user {
    use super::{NAME_LEN, ReversedName};

    impl ReversedName {
        /// Key data and length in bits for exactly this name (lower case, no trailing dot). None if it is too long.
        pub fn exact(name: &str) -> Option<(Self, u32)> {
            Self::of(name, 0)
        }

        /// Key data and length in bits for all names below this one. None if it is too long.
        pub fn below(suffix: &str) -> Option<(Self, u32)> {
            Self::of(suffix, b'.')
        }

        fn of(name: &str, end: u8) -> Option<(Self, u32)> {
            let mut data = [0; NAME_LEN];
            let bytes = data.get_mut(..=name.len())?;
            for (slot, byte) in bytes.iter_mut().zip(name.bytes().rev().chain([end])) {
                *slot = byte;
            }
            Some((Self(data), 8 * u32::try_from(name.len() + 1).ok()?))
        }
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_a_prefix_of_what_it_stands_for() {
        let covers = |suffix, name| {
            let (prefix, bits) = ReversedName::below(suffix).expect("short");
            let (key, key_bits) = ReversedName::exact(name).expect("short");
            let bytes = (bits / 8) as usize;
            bits <= key_bits && prefix.0[..bytes] == key.0[..bytes]
        };
        assert!(covers("example.com", "www.example.com") && covers("example.com", "a.b.example.com"));
        assert!(!covers("example.com", "example.com") && !covers("example.com", "wwwexample.com"));
    }

    #[test]
    fn an_exact_name_is_no_prefix_of_another() {
        let (short, bits) = ReversedName::exact("le.com").expect("short");
        let (long, _) = ReversedName::exact("example.com").expect("short");
        let bytes = (bits / 8) as usize;
        assert_ne!(short.0[..bytes], long.0[..bytes]);
    }

    #[test]
    fn the_longest_name_fits() {
        assert!(ReversedName::exact(&"a".repeat(253)).is_some());
        assert!(ReversedName::exact(&"a".repeat(NAME_LEN)).is_none());
    }
}
