//! DNS messages as the kernel reads them, from the same source file: the question is the one that hickory reads, the addresses of
//! its answers are learned, and what an earlier message has left in the buffer makes no difference.

#![no_main]

// The program's surroundings, under the names that it knows them by.
extern crate self as aya_ebpf;
#[path = "../../egress-ebpf/src/dns/message.rs"]
mod message;

use std::collections::BTreeSet;

use egress_common::{
    address::IpBytes,
    destination::Destination,
    learned::{NAME_LEN, NAME_PORTS, NameRule, ReversedName},
};
use hickory_proto::{
    op::{Header, Query},
    rr::{DNSClass, RData, Record},
    serialize::binary::{BinDecodable as _, BinDecoder},
};
use libfuzzer_sys::fuzz_target;

use self::message::{HEADER_LEN, Learned, MESSAGE_LEN};

const PORTS: [u16; 2] = [80, 8080];

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(MESSAGE_LEN)];
    if bytes.len() < HEADER_LEN as usize {
        return;
    }
    let read = read(bytes, 0);
    assert_eq!(read, self::read(bytes, 0xff), "what is beyond the message counts");
    assert_eq!(read, self::read(bytes, 4), "what is beyond the message counts");
    check(bytes, read.as_ref());
});

/// What comes of a message.
#[derive(Debug, PartialEq)]
struct Read {
    /// The key that its question is looked up by.
    name: Vec<u8>,
    addresses: BTreeSet<[u8; 16]>,
    /// Whether there were some, unless not all were learned.
    any: Option<bool>,
}

/// Reads a message into a buffer that is full of `rest`.
fn read(bytes: &[u8], rest: u8) -> Option<Read> {
    maps::reset(bytes, rest);
    let (rule, answers) = message::question(bytes.len() as u32)?;
    let learned = message::learn(answers, maps::NETNS, rule);
    let (name, destinations) = maps::noted();
    let addresses: BTreeSet<_> = destinations.iter().map(|destination| destination.address.0).collect();
    for address in &addresses {
        for port in PORTS {
            let expected = Destination::new(IpBytes(*address), port.to_be_bytes());
            assert!(destinations.contains(&expected), "an address is learned for each port");
        }
    }
    let any = match learned {
        Learned::All { any } => Some(any),
        Learned::Part => None,
    };
    assert!(any.is_none_or(|any| any != addresses.is_empty()));
    Some(Read { name, addresses, any })
}

/// Compares with what another parser makes of it, as far as that gets.
fn check(bytes: &[u8], read: Option<&Read>) {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(header) = Header::read(&mut decoder) else { return };
    // Names are not compressed before there is one.
    let is_compressed = |length: u8| length & 0xc0 == 0xc0;
    if header.counts.queries != 1 || bytes[2] & 0x80 == 0 || labels(bytes).any(is_compressed) {
        assert_eq!(read, None);
        return;
    }
    let Ok(query) = Query::read(&mut decoder) else { return };
    if query.name.is_root() {
        assert_eq!(read, None);
        return;
    }
    let read = read.expect("a response about a name");
    let text = query.name.iter().collect::<Vec<_>>().join(&b'.').to_ascii_lowercase();
    let expected: Vec<u8> = text.iter().rev().copied().chain([0]).collect();
    assert_eq!(read.name, expected);

    let mut addresses = BTreeSet::new();
    for _ in 0..header.counts.answers {
        // Up to here the application may read, and may have what it needs.
        let Ok(record) = Record::read(&mut decoder) else {
            assert!(read.addresses.is_superset(&addresses));
            return;
        };
        let address = match record.data {
            RData::A(address) => IpBytes::from_v4(address.octets()),
            RData::AAAA(address) => IpBytes(address.octets()),
            _ => continue,
        };
        if record.dns_class == DNSClass::IN && !address.is_loopback() {
            addresses.insert(address.0);
        }
    }
    assert_eq!(read.addresses, addresses);
    assert_eq!(read.any, Some(!addresses.is_empty()));
}

/// The length bytes of the question's labels.
fn labels(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let mut at = HEADER_LEN as usize;
    std::iter::from_fn(move || {
        let length = *bytes.get(at)?;
        at += 1 + usize::from(length);
        (length != 0).then_some(length)
    })
}

/// The program's maps: one scratch buffer, a rule for every name, and room for all that is learned.
mod maps {
    use std::cell::{RefCell, UnsafeCell};

    use super::{Destination, MESSAGE_LEN, NAME_LEN, NAME_PORTS, NameRule, PORTS, ReversedName, message::State};

    pub const NETNS: u64 = 7;

    pub struct Key {
        pub prefix_len: u32,
        pub data: ReversedName,
    }

    pub struct Scratch {
        pub message: [u8; MESSAGE_LEN],
        pub name: Key,
        pub state: State,
    }

    #[derive(Default)]
    struct Noted {
        name: Vec<u8>,
        destinations: Vec<Destination>,
    }

    thread_local! {
        // SAFETY: it is made of integers and booleans alone, of which all zeros are a value.
        static SCRATCH: UnsafeCell<Scratch> = const { UnsafeCell::new(unsafe { std::mem::zeroed() }) };
        static NOTED: RefCell<Noted> = RefCell::default();
    }

    /// Begins with a message in a buffer that is full of `rest`.
    pub fn reset(message: &[u8], rest: u8) {
        let scratch = scratch().expect("there is one");
        scratch.message = [rest; MESSAGE_LEN];
        scratch.message[..message.len()].copy_from_slice(message);
        scratch.name.data = ReversedName([rest; NAME_LEN]);
        NOTED.take();
    }

    /// The name that was looked up, and what was learned.
    pub fn noted() -> (Vec<u8>, Vec<Destination>) {
        let noted = NOTED.take();
        (noted.name, noted.destinations)
    }

    pub fn scratch() -> Option<&'static mut Scratch> {
        // SAFETY: the thread lives as long as the process, and the program uses no reference beyond the next call.
        SCRATCH.with(|scratch| unsafe { scratch.get().as_mut() })
    }

    pub fn name_rule(name: &Key) -> Option<NameRule> {
        assert_eq!(name.prefix_len % 8, 0);
        NOTED.with_borrow_mut(|noted| noted.name = name.data.0[..name.prefix_len as usize / 8].to_vec());
        let mut rule = NameRule { ports: [[0; 2]; NAME_PORTS] };
        for (slot, port) in rule.ports.iter_mut().zip(PORTS) {
            *slot = port.to_be_bytes();
        }
        Some(rule)
    }

    pub fn learn(netns: u64, destination: Destination) -> Result<(), ()> {
        assert_eq!(netns, NETNS);
        NOTED.with_borrow_mut(|noted| noted.destinations.push(destination));
        Ok(())
    }
}

/// What the kernel gives programs.
pub mod helpers {
    pub(super) mod generated {
        use std::ffi::c_void;

        /// Calls `body` until it returns something else than 0.
        ///
        /// # Safety
        /// It is a function that takes nothing and returns a number.
        pub unsafe fn bpf_loop(times: u32, body: *mut c_void, _context: *mut c_void, _flags: u64) -> i64 {
            // SAFETY: as promised.
            let body = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> i64>(body) };
            // SAFETY: it finds what it needs by itself.
            (0..times).take_while(|_| unsafe { body() } == 0).count() as i64
        }
    }
}
