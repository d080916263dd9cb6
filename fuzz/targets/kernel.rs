//! What the kernel says: lists of sockets, the mount table, which cgroup and capabilities a process has, and where connections were
//! going that the programs have redirected.

#![no_main]

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, SocketAddr},
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    sync::LazyLock,
};

use egress::{
    kernel::{
        capabilities,
        cgroup::{find_mount, find_own},
    },
    netns::sock_diag::{Connection, Protocol, read},
};
use egress_common::{
    address::IpBytes,
    destination::Capture,
    flow::Flow,
    origin::Origin,
    slot::{SLOTS, Slots},
};
use libfuzzer_sys::fuzz_target;

// Of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_LEN: usize = 16;
const RESPONSE_LEN: usize = 72;
const AF_UNIX: u8 = 1;
const AF_INET: u8 = 2;
const CGROUP_ID: u16 = 21;
const SK_BPF_STORAGES: u16 = 20;

fuzz_target!(|bytes: &[u8]| {
    check_sockets(bytes);
    check_mounts(bytes);
    check_process(bytes);
    check_slots(bytes);
});

/// Whoever takes the bytes apart by the kernel's headers finds the same sockets.
fn check_sockets(datagram: &[u8]) {
    let mut connections = Vec::new();
    let Ok(is_complete) = read(datagram, Protocol::Tcp, &mut connections) else { return };
    let mut found = connections.iter();
    let mut rest = datagram;
    while let Some((header, _)) = rest.split_at_checked(HEADER_LEN) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match u16::from_ne_bytes([header[4], header[5]]) {
            NLMSG_DONE | NLMSG_ERROR => {
                assert!(is_complete && found.next().is_none());
                return;
            }
            // What is no answer is passed over, and so is one that is about no socket of ours.
            0..16 => {}
            _ if rest[HEADER_LEN] == AF_UNIX => {}
            _ => check_socket(&rest[HEADER_LEN..length], found.next().expect("it is listed")),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    assert!(!is_complete && found.next().is_none());
}

fn check_socket(response: &[u8], connection: &Connection) {
    let (response, mut attributes) = response.split_at(RESPONSE_LEN);
    let address = |at: usize| -> IpAddr {
        let bytes: [u8; 16] = response[at..at + 16].try_into().expect("sixteen bytes");
        let [a, b, c, d, ..] = bytes;
        if response[0] == AF_INET { [a, b, c, d].into() } else { IpAddr::from(bytes).to_canonical() }
    };
    let port = |at: usize| u16::from_be_bytes([response[at], response[at + 1]]);
    assert_eq!(connection.local, SocketAddr::new(address(8), port(4)));
    assert_eq!(connection.remote, SocketAddr::new(address(24), port(6)));
    assert_eq!(connection.cookie(), response[44..52]);

    let (mut cgroup, mut stored) = (None, false);
    while let [low, high, kind_low, kind_high, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let value = &attributes[4..length];
        match u16::from_ne_bytes([kind_low, kind_high]) & !0x8000 {
            CGROUP_ID => cgroup = value.try_into().ok().map(u64::from_ne_bytes).or(cgroup),
            SK_BPF_STORAGES => stored = true,
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    assert_eq!((connection.cgroup, connection.stored), (cgroup, stored));
}

/// A mount is found whatever its path is, and whatever is mounted besides.
fn check_mounts(bytes: &[u8]) {
    let _ = find_mount(bytes);
    let (before, path) = bytes.split_at(bytes.len() / 2);
    if path.is_empty() || path.contains(&0) {
        return;
    }
    let mut table = Vec::new();
    for (path, kind) in [(before, "tmpfs"), (path, "cgroup2")] {
        table.extend_from_slice(b"none ");
        for byte in path {
            // As the kernel writes it (seq_path).
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' => table.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
                other => table.push(*other),
            }
        }
        table.extend_from_slice(format!(" {kind} rw 0 0\n").as_bytes());
    }
    assert_eq!(find_mount(&table).expect("there is one").as_os_str().as_bytes(), path);
}

/// Its cgroup and its capabilities are found whatever they are, and whatever is said before.
fn check_process(bytes: &[u8]) {
    let _ = (find_own(bytes), capabilities(bytes));
    let (before, rest) = bytes.split_at(bytes.len() / 2);
    // One line; what it begins with makes it another.
    let line = |name: &[u8]| [name, &before.iter().map(|byte| byte.max(&b' ')).copied().collect::<Vec<_>>()].concat();
    if !rest.contains(&b'\n') {
        let list = [&line(b"1:name=systemd:/"), &b"\n0::/"[..], rest, b"\n"].concat();
        assert_eq!(find_own(&list).as_os_str().as_bytes(), rest);
    }
    let effective = rest.iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    let status = [&line(b"Name:\t"), format!("\nCapPrm:\t0\nCapEff:\t{effective:016x}\n").as_bytes()].concat();
    assert_eq!(capabilities(&status), Some(effective));
}

/// A slot is as long, has its flow and its origin from there on, and is full if its state ends like this.
const SLOT_LEN: usize = 96;
const FLOW: usize = 8;
const ORIGIN: usize = 40;
const FULL: u64 = 2;

/// What stands for the memory of the map `SLOTS`, and the same as the agent has it.
static MEMORY: LazyLock<(File, Slots)> = LazyLock::new(|| {
    let file = tempfile::tempfile().expect("a file");
    file.set_len((SLOTS * SLOT_LEN) as u64).expect("room");
    let slots = Slots::map(file.as_fd()).expect("memory");
    (file, slots)
});

/// Whoever goes by the layout finds the same origins: each by its own flow, and once.
fn check_slots(bytes: &[u8]) {
    let (memory, slots) = &*MEMORY;
    let mut written = BTreeMap::new();
    for bytes in bytes.chunks_exact(SLOT_LEN) {
        let mut bytes: [u8; SLOT_LEN] = bytes.try_into().expect("as many");
        // Nobody writes so often that it could grow no more.
        bytes[7] = 0;
        let index = flow(&bytes).slot();
        memory.write_all_at(&bytes, place(index)).expect("it is there");
        written.insert(index, bytes);
    }
    let is_odd = |bytes: &[u8; SLOT_LEN]| bytes[ORIGIN] % 2 == 1;
    let odd = written.values().filter(|bytes| is_full(bytes) && is_odd(bytes)).count();
    assert_eq!(slots.remove_if(|origin| origin.recorded_ns % 2 == 1), odd);
    for (index, bytes) in &written {
        let (flow, before) = (flow(bytes), state(memory, *index));
        assert_eq!(before, number(bytes, 0) + if is_full(bytes) && is_odd(bytes) { 2 } else { 0 });
        // The same client's, to the listener of another agent; and one that has another address.
        let mut others = [flow; 2];
        others[0].listener[1] ^= 1;
        others[1].address.0[0] ^= 1;
        assert!(others.iter().all(|other| other.slot() == *index && slots.take(other).is_none()));
        // The agent asks for none in whose reserved bytes there is something.
        let taken = slots.take(&flow);
        assert_eq!(taken.is_some(), is_full(bytes) && !is_odd(bytes) && bytes[36..ORIGIN] == [0; 4]);
        assert_eq!(state(memory, *index), before + if taken.is_some() { 2 } else { 0 });
        assert!(slots.take(&flow).is_none());
        if let Some(origin) = taken {
            check_origin(&bytes[ORIGIN..], &origin);
        }
        memory.write_all_at(&[0; SLOT_LEN], place(*index)).expect("it is there");
    }
}

fn place(index: u32) -> u64 {
    u64::from(index) * SLOT_LEN as u64
}

fn state(memory: &File, index: u32) -> u64 {
    let mut state = [0; 8];
    memory.read_exact_at(&mut state, place(index)).expect("it is there");
    u64::from_ne_bytes(state)
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn is_full(bytes: &[u8; SLOT_LEN]) -> bool {
    number(bytes, 0) % 4 == FULL
}

/// The flow of a slot, as it would be asked for.
fn flow(bytes: &[u8; SLOT_LEN]) -> Flow {
    let address = IpBytes(bytes[FLOW + 8..FLOW + 24].try_into().expect("sixteen bytes"));
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    Flow::new(number(bytes, FLOW), address, port(FLOW + 24), port(FLOW + 26))
}

fn check_origin(bytes: &[u8], origin: &Origin) {
    assert_eq!(origin.recorded_ns, number(bytes, 0));
    let address: [u8; 16] = bytes[8..24].try_into().expect("sixteen bytes");
    let port = u16::from_be_bytes([bytes[48], bytes[49]]);
    assert_eq!(origin.socket_addr(), SocketAddr::new(IpAddr::from(address).to_canonical(), port));
    let name = &bytes[24..40];
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    assert_eq!(origin.process_name(), String::from_utf8_lossy(&name[..length]));
    let [pid, device] = [40, 44].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes")));
    assert_eq!((origin.pid, origin.device), (pid, device));
    assert_eq!((origin.capture, origin.connecting, origin.ambiguous), (bytes[50], bytes[51], bytes[52]));
    assert_eq!(origin.by_port_alone(), bytes[50] == Capture::Port as u8);
    assert_eq!(origin.is_ambiguous(), bytes[52] != 0);
}
