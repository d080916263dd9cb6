//! What the kernel says: lists of sockets, the mount table, and which cgroup and capabilities a process has.

#![no_main]

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::ffi::OsStrExt as _,
};

use egress::{
    kernel::{
        capabilities,
        cgroup::{find_mount, find_own},
    },
    netns::sock_diag::{Connection, Protocol, read},
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
