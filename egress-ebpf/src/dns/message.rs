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
    learned::{NAME_LEN, NAME_PORTS},
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
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
/// A longer label is none, but the first byte of a pointer to where the name goes on.
const MAX_LABEL: u8 = 63;
const POINTER: u8 = 0xc0;
const POINTER_LEN: u32 = 2;
const POINTER_BITS: u16 = 0x3fff;
/// Labels and pointers of a name that are read: twice the labels that there can be.
const NAME_PARTS: u32 = NAME_LEN as u32;

/// Aliases (CNAME) whose rules are looked for. Resolvers follow no more.
const ALIASES: u32 = 16;

/// Ports that the addresses of one answer can be intercepted on: those of its question and of its aliases together.
const ANSWER_PORTS: usize = 2 * NAME_PORTS;
/// In place of a port where there are no more.
const NO_PORT: [u8; 2] = [0; 2];

/// What [`learn`] did.
pub enum Learned {
    /// It is no response with answers, or one about names that have no rule.
    Nothing,
    /// Every address of the answer is intercepted; `any` if there were some.
    All { any: bool },
    /// There was no room, be it for all ports, the message is malformed, or nobody knows what its addresses are of.
    Part,
}

/// How far the reading has come. Each loop uses some of it.
#[repr(C)]
pub struct State {
    /// Length of the message.
    len: u32,
    /// What is read next of the records.
    at: u32,
    /// Whether what is read next belongs to the name that a record or a question begins with.
    in_name: bool,
    /// Whether records are read for their aliases.
    for_aliases: bool,
    /// Whether there were addresses.
    any: bool,
    /// Whether one of them, or a port, could not be learned.
    failed: bool,
    /// Questions before the records that are still to be passed over.
    questions: u32,
    /// Records that are still to be read.
    left: u32,
    /// Where the last alias leads: the place of a name; 0 if there was none.
    target: u32,
    /// What is read next of a name.
    name_at: u32,
    /// Where that which follows a name begins; 0 until it is known.
    name_end: u32,
    /// Length of the name as text, with a dot in front.
    name_len: u32,
    /// Letters of it that are still to be copied.
    letters: u32,
    /// Those that are left of the label that is being copied.
    label: u32,
    /// Whether the name has an end.
    complete: bool,
    /// Cookie of the network namespace that is learned for.
    netns: u64,
    /// What addresses are learned for. Without ports, none can be.
    ports: [[u8; 2]; ANSWER_PORTS],
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

/// Learns the addresses in the answers of a message for one network namespace, if it is about a name that has a rule. Which name
/// a record is of does not matter: behind an alias (CNAME) it is another, and a resolver uses none that does not belong to the
/// question.
#[inline(always)]
pub fn learn(len: u32, netns: u64) -> Learned {
    let Some(scratch) = maps::scratch() else { return Learned::Part };
    let (is_response, questions, answers) = (byte(scratch, 2) & 0x80 != 0, word(scratch, 4), word(scratch, 6));
    if !is_response || answers == 0 {
        return Learned::Nothing;
    }
    scratch.state.len = len;
    scratch.state.netns = netns;
    scratch.state.any = false;
    scratch.state.failed = false;
    scratch.state.ports = [NO_PORT; ANSWER_PORTS];
    let question = if questions == 1 { read_name(HEADER_LEN) } else { None };
    let Some(name_end) = question else {
        // Some take the addresses of a response whose question is another than theirs.
        return match learn_records(HEADER_LEN, questions.into()) {
            Some(State { failed: true, .. }) | None => Learned::Part,
            Some(_) => Learned::Nothing,
        };
    };
    let answers = name_end + QUESTION_END;
    add_rule_of_name();
    add_rules_of_aliases(answers);
    let Some(scratch) = maps::scratch() else { return Learned::Part };
    if scratch.state.ports[0] == NO_PORT {
        return Learned::Nothing;
    }
    // Of a truncated answer the rest is asked for over TCP.
    let is_truncated = byte(scratch, 2) & 0x02 != 0;
    match learn_records(answers, 0) {
        Some(&mut State { left, any, failed: false, .. }) if left == 0 || is_truncated => Learned::All { any },
        _ => Learned::Part,
    }
}

/// Reads a name into the key that it is looked up by. Says where it ends; None if it has no end, or no label.
#[inline(always)]
fn read_name(at: u32) -> Option<u32> {
    let scratch = maps::scratch()?;
    scratch.state.name_at = at;
    scratch.state.name_end = 0;
    scratch.state.name_len = 0;
    scratch.state.complete = false;
    repeat(NAME_PARTS, next_label);
    let scratch = maps::scratch()?;
    let State { name_end, name_len, complete, .. } = scratch.state;
    if !complete || name_len == 0 || name_len > NAME_LEN as u32 {
        return None;
    }
    scratch.state.name_at = at;
    scratch.state.letters = name_len;
    scratch.state.label = 0;
    repeat(NAME_PARTS + NAME_LEN as u32, next_letter);
    Some(name_end)
}

/// Finds the end of a name.
unsafe extern "C" fn next_label() -> i64 {
    let Some(scratch) = maps::scratch() else { return STOP };
    let at = scratch.state.name_at;
    let first = byte(scratch, at);
    let Some(length) = part_len(first).filter(|length| at + length <= scratch.state.len) else { return STOP };
    if (1..=MAX_LABEL).contains(&first) {
        scratch.state.name_at = at + length;
        scratch.state.name_len += length;
        return CONTINUE;
    }
    if scratch.state.name_end == 0 {
        scratch.state.name_end = at + length;
    }
    if first == 0 {
        scratch.state.complete = true;
        return STOP;
    }
    scratch.state.name_at = pointed_at(scratch, at);
    CONTINUE
}

/// Length of a part of a name that begins with this byte: the end, a label, or a pointer.
#[inline(always)]
fn part_len(first: u8) -> Option<u32> {
    match first {
        0 => Some(1),
        1..=MAX_LABEL => Some(1 + u32::from(first)),
        POINTER.. => Some(POINTER_LEN),
        _ => None,
    }
}

/// Copies a name that has an end into its key: backwards, in lower case, with dots and a zero at the end.
unsafe extern "C" fn next_letter() -> i64 {
    let Some(scratch) = maps::scratch() else { return STOP };
    let (at, name_len) = (scratch.state.name_at, scratch.state.name_len);
    let found = byte(scratch, at);
    let is_letter = scratch.state.label > 0;
    if !is_letter && found >= POINTER {
        scratch.state.name_at = pointed_at(scratch, at);
        return CONTINUE;
    }
    if !is_letter && found == 0 {
        // In place of the dot that the first label has begun with.
        scratch.name.data.0[(name_len - 1) as usize & (NAME_LEN - 1)] = 0;
        return STOP;
    }
    let letter = if is_letter { found.to_ascii_lowercase() } else { b'.' };
    scratch.state.label = if is_letter { scratch.state.label - 1 } else { found.into() };
    scratch.state.letters -= 1;
    scratch.name.data.0[scratch.state.letters as usize & (NAME_LEN - 1)] = letter;
    scratch.state.name_at = at + 1;
    CONTINUE
}

#[inline(always)]
fn pointed_at(scratch: &Scratch, at: u32) -> u32 {
    (word(scratch, at) & POINTER_BITS).into()
}

/// Has addresses learned for the ports of the rule for the name that was read last, too, if there is one.
#[inline(always)]
fn add_rule_of_name() {
    let Some(scratch) = maps::scratch() else { return };
    scratch.name.prefix_len = 8 * scratch.state.name_len;
    let Some(rule) = maps::name_rule(&scratch.name) else { return };
    for port in rule.ports {
        if port == NO_PORT {
            return;
        }
        add_port(&mut scratch.state, port);
    }
}

#[inline(always)]
fn add_port(state: &mut State, port: [u8; 2]) {
    for index in 0..ANSWER_PORTS {
        if state.ports[index] == NO_PORT {
            state.ports[index] = port;
        }
        if state.ports[index] == port {
            return;
        }
    }
    state.failed = true;
}

/// The same for the names that the question's is an alias of, such as one that a search domain was added to (CoreDNS's
/// `autopath`). The application may ask the origin for such a name, and on another port.
#[inline(always)]
fn add_rules_of_aliases(answers: u32) {
    if begin(answers, 0).is_none() {
        return;
    }
    let Some(scratch) = maps::scratch() else { return };
    scratch.state.for_aliases = true;
    repeat(ALIASES, next_alias);
}

/// Goes through the names that aliases lead to.
unsafe extern "C" fn next_alias() -> i64 {
    let Some(scratch) = maps::scratch() else { return STOP };
    scratch.state.target = 0;
    repeat(MESSAGE_LEN as u32, next_record);
    let Some(scratch) = maps::scratch() else { return STOP };
    let target = scratch.state.target;
    if target == 0 {
        return STOP;
    }
    if read_name(target).is_some() {
        add_rule_of_name();
    }
    CONTINUE
}

/// Learns the addresses of records.
#[inline(always)]
fn learn_records(at: u32, questions: u32) -> Option<&'static mut State> {
    begin(at, questions)?;
    maps::scratch()?.state.for_aliases = false;
    repeat(MESSAGE_LEN as u32, next_record);
    Some(&mut maps::scratch()?.state)
}

/// The next records are those of the answers, which begin at `at`, with so many questions before them.
#[inline(always)]
fn begin(at: u32, questions: u32) -> Option<()> {
    let scratch = maps::scratch()?;
    scratch.state.left = word(scratch, 6).into();
    scratch.state.at = at;
    scratch.state.in_name = true;
    scratch.state.questions = questions;
    Some(())
}

/// Goes through questions and records: the labels of a name one by one, then what follows it.
unsafe extern "C" fn next_record() -> i64 {
    let Some(scratch) = maps::scratch() else { return STOP };
    let at = scratch.state.at;
    if scratch.state.left == 0 || at >= scratch.state.len {
        return STOP;
    }
    if scratch.state.in_name {
        let first = byte(scratch, at);
        let Some(length) = part_len(first) else { return STOP };
        scratch.state.in_name = (1..=MAX_LABEL).contains(&first);
        scratch.state.at = at + length;
        return CONTINUE;
    }
    if scratch.state.questions > 0 {
        scratch.state.questions -= 1;
        scratch.state.at = at + QUESTION_END;
        scratch.state.in_name = true;
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
    scratch.state.at = data + data_len;
    scratch.state.left -= 1;
    scratch.state.in_name = true;
    if scratch.state.for_aliases {
        if (class, kind) != (CLASS_IN, TYPE_CNAME) || data_len == 0 {
            return CONTINUE;
        }
        scratch.state.target = data;
        return STOP;
    }
    if let Some(address) = address {
        learn_address(&mut scratch.state, address);
    }
    CONTINUE
}

#[inline(always)]
fn learn_address(state: &mut State, address: IpBytes) {
    if address.is_loopback() {
        return;
    }
    state.any = true;
    if state.ports[0] == NO_PORT {
        state.failed = true;
    }
    for index in 0..ANSWER_PORTS {
        let port = state.ports[index];
        if port == NO_PORT {
            return;
        }
        if maps::learn(state.netns, Destination::new(address, port)).is_err() {
            state.failed = true;
        }
    }
}
