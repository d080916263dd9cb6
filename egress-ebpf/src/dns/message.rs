//! Reads DNS messages (RFC 1035 section 4).
//!
//! Loops are `bpf_loop` (Linux 5.17), whose bodies the verifier looks at once, provided that nothing that it keeps track of
//! changes from one turn to the next. Hence a body finds its state in a map by itself, as does who looks at it afterwards,
//! and masks indices, so that every access is seen to be within bounds.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::generated::bpf_loop;
use egress_common::{
    address::IpBytes,
    destination::Destination,
    learned::{NAME_LEN, NAME_PORTS, NameRule},
};

use crate::maps::{self, Scratch};

/// Longest message that is read; clients announce no more (RFC 6891 section 6.2.5).
pub const MESSAGE_LEN: usize = 4096;

/// Length of the message's own header, and so where the question begins.
pub const HEADER_LEN: u32 = 12;
/// Type and class, which end a question.
const QUESTION_END: u32 = 4;
/// Type, class, time to live and data length, which follow a record's name.
const RECORD_HEADER_LEN: u32 = 10;
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// A longer label is none, but the first byte of a pointer to where the name goes on.
const MAX_LABEL: u8 = 63;
const POINTER: u8 = 0xc0;
const POINTER_LEN: u32 = 2;

/// What [`learn`] did.
pub enum Learned {
    /// Every address of the answer is intercepted; `any` if there were some.
    All { any: bool },
    /// There was no room, or the message is malformed.
    Part,
}

/// How far the reading has come. Each loop uses some of it.
#[repr(C)]
pub struct State {
    /// Length of the message.
    len: u32,
    /// What is read next.
    at: u32,
    /// Whether the question's name has an end.
    complete: bool,
    /// Whether what is read next belongs to a record's name.
    in_name: bool,
    /// Whether there were addresses.
    any: bool,
    /// Whether one of them could not be learned.
    failed: bool,
    /// Length of the question's name as text.
    name_len: u32,
    /// Where the next label of the question begins, with its length.
    next_label: u32,
    /// Records that are still to be read.
    left: u32,
    /// Cookie of the network namespace that is learned for.
    netns: u64,
    /// What is learned.
    rule: NameRule,
}

/// Runs `body` until it returns [`STOP`], but `times` times at most.
#[inline(always)]
fn repeat(times: u32, body: unsafe extern "C" fn() -> i64) {
    // SAFETY: the body is a function of this object, and needs no argument.
    unsafe { bpf_loop(times, body as *mut c_void, ptr::null_mut(), 0) };
}

const CONTINUE: i64 = 0;
const STOP: i64 = 1;

#[inline(always)]
fn byte(scratch: &Scratch, at: u32) -> u8 {
    scratch.message[at as usize & (MESSAGE_LEN - 1)]
}

#[inline(always)]
fn word(scratch: &Scratch, at: u32) -> u16 {
    u16::from_be_bytes([byte(scratch, at), byte(scratch, at + 1)])
}

/// The rule for the name that a response is about, and where its answers begin. None if it is no response, or of no concern.
#[inline(always)]
pub fn question(len: u32) -> Option<(NameRule, u32)> {
    let scratch = maps::scratch()?;
    let (is_response, questions) = (byte(scratch, 2) & 0x80 != 0, word(scratch, 4));
    if !is_response || questions != 1 {
        return None;
    }
    scratch.state.len = len;
    scratch.state.at = HEADER_LEN;
    scratch.state.complete = false;
    repeat(NAME_LEN as u32 / 2, next_label);
    // The length of the first label is not part of the text; those of the others become its dots.
    let scratch = maps::scratch()?;
    let (end, complete) = (scratch.state.at, scratch.state.complete);
    let name_len = end.checked_sub(HEADER_LEN + 1)?;
    if !complete || name_len >= NAME_LEN as u32 {
        return None;
    }
    scratch.state.name_len = name_len;
    scratch.state.at = HEADER_LEN + 1;
    scratch.state.next_label = HEADER_LEN + 1 + u32::from(byte(scratch, HEADER_LEN));
    repeat(NAME_LEN as u32, next_letter);
    let scratch = maps::scratch()?;
    scratch.name.prefix_len = 8 * (name_len + 1);
    Some((maps::name_rule(&scratch.name)?, end + 1 + QUESTION_END))
}

/// Finds the end of a name that is not compressed.
unsafe extern "C" fn next_label() -> i64 {
    let Some(scratch) = maps::scratch() else { return STOP };
    let at = scratch.state.at;
    if at >= scratch.state.len {
        return STOP;
    }
    match byte(scratch, at) {
        0 => {
            scratch.state.complete = true;
            STOP
        }
        length @ 1..=MAX_LABEL => {
            scratch.state.at = at + 1 + u32::from(length);
            CONTINUE
        }
        _ => STOP,
    }
}

/// Copies a name into the key that it is looked up by: backwards, in lower case, with dots and a zero at the end.
unsafe extern "C" fn next_letter() -> i64 {
    let Some(scratch) = maps::scratch() else { return STOP };
    let (at, name_len) = (scratch.state.at, scratch.state.name_len);
    let index = at - HEADER_LEN - 1;
    if index >= name_len {
        scratch.name.data.0[name_len as usize & (NAME_LEN - 1)] = 0;
        return STOP;
    }
    let found = byte(scratch, at);
    let letter = if at == scratch.state.next_label {
        scratch.state.next_label = at + 1 + u32::from(found);
        b'.'
    } else {
        found.to_ascii_lowercase()
    };
    scratch.name.data.0[(name_len - 1 - index) as usize & (NAME_LEN - 1)] = letter;
    scratch.state.at = at + 1;
    CONTINUE
}

/// Learns the addresses in the answers, which begin at `at`, for one network namespace. Which name a record is of does not
/// matter: behind an alias (CNAME) it is another, and a resolver uses none that does not belong to the question.
#[inline(always)]
pub fn learn(at: u32, netns: u64, rule: NameRule) -> Learned {
    let Some(scratch) = maps::scratch() else { return Learned::Part };
    scratch.state.left = word(scratch, 6).into();
    scratch.state.at = at;
    scratch.state.in_name = true;
    scratch.state.any = false;
    scratch.state.failed = false;
    scratch.state.netns = netns;
    scratch.state.rule = rule;
    repeat(MESSAGE_LEN as u32, next_record);
    let Some(scratch) = maps::scratch() else { return Learned::Part };
    // Of a truncated answer the rest is asked for over TCP.
    let truncated = byte(scratch, 2) & 0x02 != 0;
    let State { left, any, failed, .. } = scratch.state;
    if failed || (left > 0 && !truncated) { Learned::Part } else { Learned::All { any } }
}

/// Goes through records: the labels of a name one by one, then what follows it.
unsafe extern "C" fn next_record() -> i64 {
    let Some(scratch) = maps::scratch() else { return STOP };
    let at = scratch.state.at;
    if scratch.state.left == 0 || at >= scratch.state.len {
        return STOP;
    }
    if scratch.state.in_name {
        let first = byte(scratch, at);
        scratch.state.in_name = (1..=MAX_LABEL).contains(&first);
        scratch.state.at = at
            + match first {
                0 => 1,
                1..=MAX_LABEL => 1 + u32::from(first),
                POINTER.. => POINTER_LEN,
                _ => return STOP,
            };
        return CONTINUE;
    }
    let (kind, class, data_len) = (word(scratch, at), word(scratch, at + 2), u32::from(word(scratch, at + 8)));
    let data = at + RECORD_HEADER_LEN;
    if data + data_len > scratch.state.len {
        return STOP;
    }
    let address = match (class, kind, data_len) {
        (CLASS_IN, TYPE_A, 4) => Some(IpBytes::from_v4([0, 1, 2, 3].map(|index| byte(scratch, data + index)))),
        (CLASS_IN, TYPE_AAAA, 16) => {
            let mut bytes = [0; 16];
            for index in 0..16 {
                bytes[index as usize] = byte(scratch, data + index);
            }
            Some(IpBytes(bytes))
        }
        _ => None,
    };
    if let Some(address) = address {
        learn_address(&mut scratch.state, address);
    }
    scratch.state.at = data + data_len;
    scratch.state.left -= 1;
    scratch.state.in_name = true;
    CONTINUE
}

#[inline(always)]
fn learn_address(state: &mut State, address: IpBytes) {
    if address.is_loopback() {
        return;
    }
    state.any = true;
    for index in 0..NAME_PORTS {
        let port = state.rule.ports[index];
        if port == [0, 0] {
            return;
        }
        if maps::learn(state.netns, Destination::new(address, port)).is_err() {
            state.failed = true;
        }
    }
}
