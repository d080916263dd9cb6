//! Learns the addresses of configured names from DNS answers, on their way to the application: it cannot connect to an
//! address that it has not seen yet, so there is no race.

mod message;

use core::ptr;

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_skb_load_bytes, programs::SkBuffContext};

use self::message::{HEADER_LEN, Learned};
pub use self::message::{MESSAGE_LEN, State};
use crate::{
    context::{ConnectContext, Family, IPPROTO_UDP},
    maps::{self, Socket},
};

const PORT: [u8; 2] = 53u16.to_be_bytes();

const IPV6_HEADER_LEN: usize = 40;
/// Where an IPv6 header says what follows it.
const IPV6_NEXT_HEADER: usize = 6;
const UDP_HEADER_LEN: usize = 8;

/// An answer has addresses that could not be learned, and are of a configured name, or may be.
pub struct NotLearned;

/// Notes sockets that ask a name server: what arrives there is listened to. It fails when that cannot be noted.
#[inline(always)]
pub fn on_destination<F: Family>(ctx: &ConnectContext<'_, F>) -> Result<(), ()> {
    if !ctx.is_udp() || ctx.destination().port != PORT {
        return Ok(());
    }
    let socket = Socket::of(ctx.raw()).ok_or(())?;
    // What the agent asks for its own sake may be more than there is room for, and nobody connects by it.
    if maps::is_own(socket) { Ok(()) } else { maps::note_asker(socket, ctx.netns()) }
}

/// Learns from a packet, if that is an answer about a configured name, or an alias of one. Says whether there were addresses.
#[inline(always)]
pub fn on_packet(ctx: &SkBuffContext) -> Result<bool, NotLearned> {
    let Some(netns) = maps::asker(ctx) else { return Ok(false) };
    let Some((len, complete)) = load(ctx) else { return Ok(false) };
    match message::learn(len, netns) {
        Learned::Nothing => Ok(false),
        Learned::All { any } if complete => Ok(any),
        _ => Err(NotLearned),
    }
}

/// Reads the message of a datagram from a name server. Says how long it is, and whether that is all of it.
#[inline(always)]
fn load(ctx: &SkBuffContext) -> Option<(u32, bool)> {
    let first: u8 = ctx.load(0).ok()?;
    let udp = match first >> 4 {
        4 => usize::from(first & 0x0f) * 4,
        6 if ctx.load::<u8>(IPV6_NEXT_HEADER).ok()? == IPPROTO_UDP => IPV6_HEADER_LEN,
        _ => return None,
    };
    let start = (udp + UDP_HEADER_LEN) as u32;
    let len = ctx.len().checked_sub(start)?;
    if len < HEADER_LEN {
        return None;
    }
    let scratch = maps::scratch()?;
    let part = len.min(MESSAGE_LEN as u32);
    // The verifier wants to see that it is not 0, and would not if the compiler knew: read so, it is any number.
    // SAFETY: a read of a live variable.
    let part = (unsafe { ptr::read_volatile(&raw const part) }.wrapping_sub(1) & (MESSAGE_LEN as u32 - 1)) + 1;
    // SAFETY: the buffer has room for as much.
    let status = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), start, scratch.message.as_mut_ptr().cast(), part) };
    (status == 0).then_some((part, part == len))
}
