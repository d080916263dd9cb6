//! What is learned of names.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC},
    btf_maps::{HashMap, LpmTrie, PerCpuArray, SkStorage, lpm_trie::Key},
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_sk_fullsock},
    macros::btf_map,
    programs::SkBuffContext,
};
use egress_common::{
    MAX_NETNS,
    destination::Destination,
    learned::{LEARNED_PER_NETNS, Learned, LearnedKey, MAX_LEARNED, MAX_NAMES, NameRule, ReversedName},
    outcome::Learning,
};

use super::{Socket, store, stored};
use crate::{
    context::IPPROTO_UDP,
    dns::{MESSAGE_LEN, State},
};

/// Whose addresses are learned.
#[btf_map]
static NAMES: LpmTrie<ReversedName, NameRule, MAX_NAMES> = LpmTrie::new();

/// What was learned.
#[btf_map]
static LEARNED: HashMap<LearnedKey, Learned, MAX_LEARNED, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// How many entries of `LEARNED` a network namespace has. The agent corrects it.
#[btf_map]
static LEARNED_COUNTS: HashMap<u64, u32, MAX_NETNS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Network namespace cookies of sockets that asked a name server.
#[btf_map]
static ASKERS: SkStorage<u64> = SkStorage::new();

/// Counters.
#[btf_map]
static LEARNINGS: PerCpuArray<u64, { Learning::ALL.len() }> = PerCpuArray::new();

/// Too large for the stack. Datagrams arrive with bottom halves disabled, so that there is one at a time on a CPU.
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Room for one DNS message and the name that it is about.
#[repr(C)]
pub struct Scratch {
    /// The message.
    pub message: [u8; MESSAGE_LEN],
    /// The name, as the key to look it up with.
    pub name: Key<ReversedName>,
    /// How far its reading has come.
    pub state: State,
}

#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the pointer is valid for the program's run, and nothing else runs on this CPU's element meanwhile.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Notes that a socket asks a name server from the network namespace with this cookie.
#[inline(always)]
pub fn note_asker(socket: Socket, netns: u64) -> Result<(), ()> {
    store(&ASKERS, socket, netns)
}

/// The network namespace of the socket that a packet arrives at, if that is a datagram socket which asked a name server.
#[inline(always)]
pub fn asker(ctx: &SkBuffContext) -> Option<u64> {
    // SAFETY: an aligned read of the context's socket pointer.
    let socket = Socket::from_ptr(unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk })?;
    // SAFETY: the socket is valid.
    let socket = Socket::from_ptr(unsafe { bpf_sk_fullsock(socket.0) })?;
    // SAFETY: an aligned four-byte read of a readable field of a full socket.
    if unsafe { ptr::read_volatile(&raw const (*socket.0).protocol) } != u32::from(IPPROTO_UDP) {
        return None;
    }
    stored(&ASKERS, socket).copied()
}

#[inline(always)]
pub fn name_rule(name: &Key<ReversedName>) -> Option<NameRule> {
    NAMES.get(name).copied()
}

/// Whether a destination was learned. One that is used is not forgotten.
#[inline(always)]
pub fn is_learned(netns: u64, destination: Destination) -> bool {
    match LEARNED.get_ptr_mut(LearnedKey::new(netns, destination)) {
        Some(learned) => {
            // SAFETY: the pointer is valid for the program's run, and writers store whole words.
            unsafe { (*learned).seen_ns = bpf_ktime_get_boot_ns() };
            true
        }
        None => false,
    }
}

/// From now on a destination is intercepted in this network namespace. It fails when there is no room for it.
#[inline(always)]
pub fn learn(netns: u64, destination: Destination) -> Result<(), ()> {
    let key = LearnedKey::new(netns, destination);
    // SAFETY: the helper takes nothing.
    let seen_ns = unsafe { bpf_ktime_get_boot_ns() };
    if let Some(learned) = LEARNED.get_ptr_mut(key) {
        // SAFETY: as above.
        unsafe { (*learned).seen_ns = seen_ns };
        return Ok(());
    }
    let count = LEARNED_COUNTS.get_ptr_mut(netns);
    // SAFETY: as above.
    if count.is_some_and(|count| unsafe { *count } >= LEARNED_PER_NETNS) {
        return Err(());
    }
    LEARNED.insert(key, Learned { seen_ns }, BPF_ANY.into()).map_err(drop)?;
    match count {
        // SAFETY: as above. Two CPUs that count at once lose one, which the agent corrects.
        Some(count) => unsafe { *count += 1 },
        None => LEARNED_COUNTS.insert(netns, 1, BPF_ANY.into()).map_err(drop)?,
    }
    Ok(())
}

#[inline(always)]
pub fn count_learning(learning: Learning) {
    if let Some(counter) = LEARNINGS.get_ptr_mut(learning as u32) {
        // SAFETY: the pointer is valid for the program's run, and the counter is this CPU's own.
        unsafe { *counter += 1 };
    }
}
