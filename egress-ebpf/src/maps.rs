//! The maps. They are private here; the rest sees typed getters.

mod flows;
mod names;

use core::{arch::asm, ffi::c_void, mem, ptr};

pub use self::flows::remove as withdraw;
pub use self::names::{Scratch, asker, count_learning, learn, name_rule, note_asker, scratch};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_tuple,
    },
    btf_maps::{HashMap, LpmTrie, PerCpuArray, RingBuf, SkStorage, lpm_trie::Key},
    helpers::generated::{
        bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_mptcp_sock,
    },
    macros::btf_map,
    programs::SockAddrContext,
};
use egress_common::{
    MAX_NETNS,
    destination::{Capture, Destination, MAX_DESTINATIONS},
    flow::{CONNECTING_PER_NETNS, Flow},
    listener::{ListenerPorts, ThreadSeen},
    origin::Origin,
    outcome::Outcome,
};

/// What is intercepted in every network namespace, and why.
#[btf_map]
static DESTINATIONS: LpmTrie<Destination, u8, MAX_DESTINATIONS> = LpmTrie::new();

/// The agent's ports by network namespace cookie.
#[btf_map]
static LISTENERS: HashMap<u64, ListenerPorts, MAX_NETNS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Marks the agent's own sockets. Marks go by socket, not by uid, pid or SO_MARK: others can have any of these.
#[btf_map]
static OWN_SOCKETS: SkStorage<u32> = SkStorage::new();

/// Where a redirected client socket was going.
#[btf_map]
static ORIGINS: SkStorage<Origin> = SkStorage::new();

/// How many redirected sockets of a network namespace are connecting.
#[btf_map]
static CONNECTING: HashMap<u64, u64, MAX_NETNS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Counters.
#[btf_map]
static OUTCOMES: PerCpuArray<u64, { Outcome::ALL.len() }> = PerCpuArray::new();

/// Threads whose network namespaces may lack a listener.
#[btf_map]
static THREADS_SEEN: RingBuf<ThreadSeen, 65536> = RingBuf::new();

/// Ids of the cgroups that are served. The value has no meaning of its own.
#[btf_map]
static SCOPES: HashMap<u64, u8, 256, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Whether the kernel can name the multipath socket of a subflow; set by the loader. At 0 the verifier removes the call,
/// which older kernels do not know.
#[unsafe(no_mangle)]
static MULTIPATH: u8 = 0;

/// A kernel socket that a hook's context or a lookup gave us; never null.
#[derive(Clone, Copy)]
pub struct Socket(*mut bpf_sock);

impl Socket {
    #[inline(always)]
    pub fn from_ptr(sk: *mut bpf_sock) -> Option<Self> {
        (!sk.is_null()).then_some(Self(sk))
    }

    /// The socket of a connect or getpeername hook.
    #[inline(always)]
    pub fn of(ctx: &SockAddrContext) -> Option<Self> {
        // SAFETY: an aligned read of the context's socket pointer.
        Self::from_ptr(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk })
    }

    /// Index of the device that it is bound to; 0 if none.
    #[inline(always)]
    pub fn bound_device(self) -> u32 {
        // SAFETY: an aligned four-byte read of a readable field of a valid socket.
        unsafe { ptr::read_volatile(&raw const (*self.0).bound_dev_if) }
    }

    /// The multipath TCP socket that this is a subflow of. The hooks run connect for the subflow, but getpeername for the
    /// socket that the application has.
    #[inline(always)]
    fn multipath(self) -> Option<Self> {
        // SAFETY: the loader sets the value before the program is loaded; a plain read would be folded at compile time.
        if unsafe { ptr::read_volatile(&raw const MULTIPATH) } == 0 {
            return None;
        }
        // SAFETY: the socket is valid, and what is returned lives as long as it.
        Self::from_ptr(unsafe { bpf_skc_to_mptcp_sock(self.0.cast()) }.cast())
    }
}

/// Why a destination is intercepted; None if it is not.
#[inline(always)]
pub fn capture(netns: u64, destination: Destination) -> Option<Capture> {
    // First, whatever else is known of the destination: one that is used is not to be forgotten.
    if names::is_learned(netns, destination) {
        return Some(Capture::Host);
    }
    match DESTINATIONS.get(&Key::new(Destination::BITS, destination)).and_then(|&number| Capture::from_number(number)) {
        Some(Capture::Excluded) | None => None,
        found => found,
    }
}

#[inline(always)]
pub fn listener_ports(netns: u64) -> Option<ListenerPorts> {
    // SAFETY: the value is copied out at once; a concurrent update replaces the whole element.
    unsafe { LISTENERS.get(netns) }.copied()
}

/// The two sizes of `bpf_sock_tuple` that tell the lookup which family is meant.
const V4_TUPLE_SIZE: u32 = 4 + 4 + 2 + 2;
const V6_TUPLE_SIZE: u32 = 16 + 16 + 2 + 2;

/// Who listens at `address:port` in the network namespace of the hook's socket.
pub enum Listening {
    Nobody,
    Us,
    Somebody,
}

/// Looks the listener up and checks that it carries our mark, so that a port which another process took over from a
/// dead agent gets nothing.
#[inline(always)]
pub fn who_listens(ctx: &SockAddrContext, at: Destination) -> Listening {
    // SAFETY: an all-zero tuple is valid: any source.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let dport = u16::from_ne_bytes(at.port);
    let size = match at.address.as_v4() {
        Some(v4) => {
            tuple.__bindgen_anon_1.ipv4.daddr = u32::from_ne_bytes(v4);
            tuple.__bindgen_anon_1.ipv4.dport = dport;
            V4_TUPLE_SIZE
        }
        None => {
            // Network order: only the last byte of ::1 is set.
            tuple.__bindgen_anon_1.ipv6.daddr = [0, 0, 0, 1u32.to_be()];
            tuple.__bindgen_anon_1.ipv6.dport = dport;
            V6_TUPLE_SIZE
        }
    };
    // SAFETY: tuple and size belong together, and the reference that the helper returns is released below.
    let Some(listener) = Socket::from_ptr(unsafe {
        bpf_sk_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size, BPF_F_CURRENT_NETNS as i64 as u64, 0)
    }) else {
        return Listening::Nobody;
    };
    let ours = is_own(listener);
    // SAFETY: the reference was acquired above and is not used afterwards.
    unsafe { bpf_sk_release(listener.0.cast()) };
    if ours { Listening::Us } else { Listening::Somebody }
}

// aya's getters for socket storage take only the context of a sock_addr hook, so the helpers are called directly.

/// What a socket has in a storage.
#[inline(always)]
fn stored<T>(storage: &SkStorage<T>, socket: Socket) -> Option<&'static mut T> {
    // SAFETY: the socket is valid, and what is returned is null or points at a value that lives as long as the socket.
    unsafe { bpf_sk_storage_get(handle(storage), socket.0.cast(), ptr::null_mut(), 0).cast::<T>().as_mut() }
}

/// Puts a value there, unless there is one.
#[inline(always)]
fn store<T>(storage: &SkStorage<T>, socket: Socket, mut value: T) -> Result<(), ()> {
    // SAFETY: as above; the helper copies the value.
    let stored = unsafe {
        let value = (&raw mut value).cast();
        bpf_sk_storage_get(handle(storage), socket.0.cast(), value, BPF_SK_STORAGE_GET_F_CREATE.into())
    };
    if stored.is_null() { Err(()) } else { Ok(()) }
}

#[inline(always)]
fn handle<T>(storage: &SkStorage<T>) -> *mut c_void {
    ptr::from_ref(storage).cast_mut().cast()
}

#[inline(always)]
pub fn is_own(socket: Socket) -> bool {
    stored(&OWN_SOCKETS, socket).is_some()
}

#[inline(always)]
pub fn origin_of(socket: Socket) -> Option<&'static mut Origin> {
    stored(&ORIGINS, socket)
}

/// Records the origin of a socket that has none.
#[inline(always)]
pub fn record_origin(socket: Socket, origin: Origin) -> Result<(), ()> {
    if let Some(multipath) = socket.multipath() {
        // It may have one: its further subflows connect to the listener too, so theirs is not the time to forget it.
        forget_origin(multipath);
        store(&ORIGINS, multipath, origin)?;
    }
    store(&ORIGINS, socket, origin)
}

/// Forgets what an earlier connect on the same socket recorded.
#[inline(always)]
pub fn forget_origin(socket: Socket) {
    // SAFETY: as above. That there is nothing to delete is the normal case.
    unsafe { bpf_sk_storage_delete(handle(&ORIGINS), socket.0.cast()) };
}

/// Publishes the flow of a socket that begins to connect, with what it has recorded. It fails when there is no room, or when the
/// network namespace has as many such sockets as it may have: what is dropped on its way back to one is never accepted.
#[inline(always)]
pub fn publish(flow: &Flow, origin: &mut Origin) -> Result<(), ()> {
    let count = match CONNECTING.get_ptr_mut(flow.netns) {
        Some(count) => count,
        None => {
            // Another CPU can be first.
            let _ = CONNECTING.insert(flow.netns, 0, BPF_NOEXIST.into());
            CONNECTING.get_ptr_mut(flow.netns).ok_or(())?
        }
    };
    // Of less than none, as below, there is still room.
    // SAFETY: the pointer is valid for the program's run.
    if unsafe { ptr::read_volatile(count) }.cast_signed() >= CONNECTING_PER_NETNS.cast_signed() {
        return Err(());
    }
    flows::insert(flow, origin)?;
    origin.connecting = 1;
    add(count, 1);
    Ok(())
}

/// The connect of a socket with this record has ended, be it in vain. It may be said again.
#[inline(always)]
pub fn connect_ended(origin: &mut Origin, netns: u64) {
    if origin.connecting != 1 {
        return;
    }
    origin.connecting = 0;
    if let Some(count) = CONNECTING.get_ptr_mut(netns) {
        // There may be less than was counted if the agent has let go of the namespace meanwhile.
        add(count, -1);
    }
}

/// Adds to a count that other CPUs change as well. The compiler knows no such operation of this architecture.
#[inline(always)]
fn add(count: *mut u64, by: i64) {
    // SAFETY: callers have the count from a map: it is aligned, and valid for the program's run.
    unsafe { asm!("lock *(u64 *)({count} + 0) += {by}", count = in(reg) count, by = in(reg) by, options(nostack)) };
}

#[inline(always)]
pub fn count(outcome: Outcome) {
    if let Some(counter) = OUTCOMES.get_ptr_mut(outcome as u32) {
        // SAFETY: the pointer is valid for the program's run, and the counter is this CPU's own. A program that is preempted
        // by another on the same CPU can lose a count, which is for people to read.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
pub fn is_served(cgroup: u64) -> bool {
    SCOPES.get_ptr(cgroup).is_some()
}

#[inline(always)]
pub fn report_thread(seen: ThreadSeen) {
    // When the ring is full the agent is behind; the next socket of the namespace reports it again.
    if let Some(mut entry) = THREADS_SEEN.reserve(0) {
        entry.write(seen);
        entry.submit(0);
    }
}
