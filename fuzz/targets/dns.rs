//! DNS messages as the kernel reads them, from the same source file: the question is the one that hickory reads, the addresses of
//! its answers are learned for the ports of its rule and those of its aliases, those of an answer to nothing are refused, and
//! what an earlier message has left in the buffer makes no difference.

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
    rr::{DNSClass, Name, RData, Record},
    serialize::binary::{BinDecodable as _, BinDecoder},
};
use libfuzzer_sys::fuzz_target;

use self::message::{HEADER_LEN, Learned, MESSAGE_LEN};

/// As many aliases are followed, as many ports are there for an answer, and as many pointers are in a name.
const ALIASES: usize = 16;
const ANSWER_PORTS: usize = 2 * NAME_PORTS;
const POINTERS: usize = 128;

fuzz_target!(|bytes: &[u8]| {
    let bytes = &bytes[..bytes.len().min(MESSAGE_LEN)];
    if bytes.len() < HEADER_LEN as usize {
        return;
    }
    let read = read(bytes, 0);
    assert_eq!(read, self::read(bytes, 0xff), "what is beyond the message counts");
    assert_eq!(read, self::read(bytes, 4), "what is beyond the message counts");
    check(bytes, &read);
});

/// What comes of a message.
#[derive(Debug, PartialEq)]
struct Read {
    /// The keys that were looked up: the question's, and the aliases'.
    names: Vec<Vec<u8>>,
    addresses: BTreeSet<[u8; 16]>,
    result: Result,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Result {
    Nothing,
    All { any: bool },
    Part,
}

/// Reads a message into a buffer that is full of `rest`.
fn read(bytes: &[u8], rest: u8) -> Read {
    maps::reset(bytes, rest);
    let result = match message::learn(bytes.len() as u32, maps::NETNS) {
        Learned::Nothing => Result::Nothing,
        Learned::All { any } => Result::All { any },
        Learned::Part => Result::Part,
    };
    let (names, destinations) = maps::noted();
    let addresses: BTreeSet<_> = destinations.iter().map(|destination| destination.address.0).collect();
    let ports = ports_of(&names);
    for address in &addresses {
        let learned = destinations.iter().filter(|destination| destination.address.0 == *address);
        let learned: BTreeSet<_> = learned.map(|destination| u16::from_be_bytes(destination.port)).collect();
        assert!(learned.is_subset(&ports), "an address is learned for another port");
        assert_eq!(learned.len(), ports.len().min(ANSWER_PORTS), "an address is learned for each port");
    }
    assert!(ports.len() <= ANSWER_PORTS || result == Result::Part, "some ports are missing");
    assert!(result == Result::Part || (result == Result::All { any: true }) != addresses.is_empty());
    Read { names, addresses, result }
}

/// The ports of the rules that names have, each once.
fn ports_of(names: &[Vec<u8>]) -> BTreeSet<u16> {
    names.iter().flat_map(|name| maps::ports(name)).collect()
}

/// Compares with what another parser makes of it, as far as that gets.
fn check(bytes: &[u8], read: &Read) {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(header) = Header::read(&mut decoder) else { return };
    if bytes[2] & 0x80 == 0 || header.counts.answers == 0 {
        assert_eq!(read.result, Result::Nothing);
        return;
    }
    let mut questions = Vec::new();
    for _ in 0..header.counts.queries {
        let Ok(query) = Query::read(&mut decoder) else { return };
        questions.push(query.name);
    }
    let question = questions.pop().filter(|name| questions.is_empty() && !name.is_root());
    let (mut addresses, mut aliases, mut is_whole) = (BTreeSet::new(), Vec::new(), true);
    for _ in 0..header.counts.answers {
        // Up to here the application may read, and may have what it needs.
        let Ok(record) = Record::read(&mut decoder) else {
            is_whole = false;
            break;
        };
        if record.dns_class != DNSClass::IN {
            continue;
        }
        let address = match record.data {
            RData::A(address) => IpBytes::from_v4(address.octets()),
            RData::AAAA(address) => IpBytes(address.octets()),
            RData::CNAME(target) => {
                aliases.push(target.0);
                continue;
            }
            _ => continue,
        };
        if !address.is_loopback() {
            addresses.insert(address.0);
        }
    }
    let Some(question) = question else {
        let is_refused = read.result == Result::Part;
        assert!(read.names.is_empty() && read.addresses.is_empty());
        assert!(is_refused || addresses.is_empty() && read.result == Result::Nothing);
        assert!(!(is_refused && is_whole && addresses.is_empty()));
        return;
    };
    if bytes.iter().filter(|byte| **byte >= 0xc0).count() >= POINTERS {
        return;
    }
    let aliases = aliases.iter().take(ALIASES).filter(|name| !name.is_root());
    let expected: Vec<_> = [&question].into_iter().chain(aliases).map(key).collect();
    let ports = ports_of(&expected);
    if !is_whole {
        assert!(read.names.starts_with(&expected));
        assert!(ports.is_empty() || read.addresses.is_superset(&addresses));
        return;
    }
    assert_eq!(read.names, expected);
    match ports.len() {
        0 => assert_eq!(read.result, Result::Nothing),
        1..=ANSWER_PORTS => assert_eq!(read.result, Result::All { any: !addresses.is_empty() }),
        _ => assert_eq!(read.result, Result::Part),
    }
    if !ports.is_empty() {
        assert_eq!(read.addresses, addresses);
    }
}

fn key(name: &Name) -> Vec<u8> {
    let text = name.iter().collect::<Vec<_>>().join(&b'.').to_ascii_lowercase();
    text.iter().rev().copied().chain([0]).collect()
}

/// The program's maps: one scratch buffer, rules for every other name, and room for all that is learned.
mod maps {
    use std::cell::{RefCell, UnsafeCell};

    use super::{Destination, MESSAGE_LEN, NAME_LEN, NAME_PORTS, NameRule, ReversedName, message::State};

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
        names: Vec<Vec<u8>>,
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

    /// The names that were looked up, and what was learned.
    pub fn noted() -> (Vec<Vec<u8>>, Vec<Destination>) {
        let noted = NOTED.take();
        (noted.names, noted.destinations)
    }

    /// The ports of the rule for the name with this key, if it has one. It goes by the last letter: one port is of all rules, and
    /// one of those for names with this letter.
    pub fn ports(key: &[u8]) -> Vec<u16> {
        if key[0] % 2 == 1 { vec![80, 8000 + u16::from(key[0])] } else { Vec::new() }
    }

    pub fn scratch() -> Option<&'static mut Scratch> {
        // SAFETY: the thread lives as long as the process, and the program uses no reference beyond the next call.
        SCRATCH.with(|scratch| unsafe { scratch.get().as_mut() })
    }

    pub fn name_rule(name: &Key) -> Option<NameRule> {
        assert_eq!(name.prefix_len % 8, 0);
        let key = &name.data.0[..name.prefix_len as usize / 8];
        NOTED.with_borrow_mut(|noted| noted.names.push(key.to_vec()));
        let ports = ports(key);
        if ports.is_empty() {
            return None;
        }
        let mut rule = NameRule { ports: [[0; 2]; NAME_PORTS] };
        for (slot, port) in rule.ports.iter_mut().zip(ports) {
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
