//! Origins on their way to the listener: each in its flow's slot, or in a hash where that is another's. See
//! [`egress_common::slot`] for what both sides keep to.

use core::{arch::asm, ptr};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use egress_common::{
    flow::Flow,
    origin::Origin,
    slot::{self, Slot, State},
};

#[btf_map]
static SLOTS: Array<Slot, { slot::SLOTS }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// A plain hash: an LRU would evict, which is to lose a destination.
#[btf_map]
static FLOWS: HashMap<Flow, Origin, 65536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Publishes the origin of a flow in place of any before it, and notes that there was one: its connection is in the listener's queue,
/// and was reset, or its port would not be free. It fails when there is no room; then one before it may be there.
#[inline(always)]
pub fn insert(flow: &Flow, origin: &mut Origin) -> Result<(), ()> {
    // To look costs less than to remove, which takes a lock.
    let is_in_hash = FLOWS.get_ptr(flow).is_some();
    let Some(slot) = Claimed::of(flow) else {
        origin.ambiguous = is_in_hash.into();
        return FLOWS.insert(flow, origin, BPF_ANY.into()).map_err(drop);
    };
    origin.ambiguous = (is_in_hash || slot.was_full).into();
    slot.fill(flow, origin);
    if is_in_hash {
        remove_from_hash(flow);
    }
    Ok(())
}

/// Removes the origin of a flow. That the listener has taken it already is the normal case.
#[inline(always)]
pub fn remove(flow: &Flow) {
    if let Some(slot) = slot(flow) {
        let state = state(slot);
        if state.is_full() && holds(slot, state, flow) {
            let _ = exchange(slot, state, state.emptied());
        }
    }
    remove_from_hash(flow);
}

#[inline(always)]
fn remove_from_hash(flow: &Flow) {
    let _ = FLOWS.remove(flow);
}

/// A slot that nobody else reads or writes.
struct Claimed {
    slot: *mut Slot,
    state: State,
    was_full: bool,
}

impl Claimed {
    /// The slot of a flow, if it is empty or has an earlier connection of the same flow.
    #[inline(always)]
    fn of(flow: &Flow) -> Option<Self> {
        let slot = slot(flow)?;
        let before = state(slot);
        let is_free = before.is_empty() || before.is_full() && holds(slot, before, flow);
        let state = before.claimed();
        (is_free && exchange(slot, before, state)).then_some(Self { slot, state, was_full: before.is_full() })
    }

    #[inline(always)]
    fn fill(self, flow: &Flow, origin: &Origin) {
        let Self { slot, state, .. } = self;
        // SAFETY: the slot is a map's, and ours.
        unsafe {
            (*slot).flow = *flow;
            (*slot).origin = *origin;
        }
        // An exchange, so that what was written before it is there before it.
        // SAFETY: the slot is a map's: aligned, and valid for the program's run.
        unsafe {
            asm!(
                "{full} = xchg_64({slot} + 0, {full})",
                full = inout(reg) state.written().0 => _,
                slot = in(reg) slot,
                options(nostack)
            );
        }
    }
}

#[inline(always)]
fn slot(flow: &Flow) -> Option<*mut Slot> {
    SLOTS.get_ptr_mut(flow.slot())
}

#[inline(always)]
fn state(slot: *mut Slot) -> State {
    // SAFETY: the slot is a map's; others change it meanwhile, a word at once.
    State(unsafe { ptr::read_volatile(&raw const (*slot).state) })
}

/// Whether a slot that was full has this flow. If it has changed since, it has it no more: nobody else publishes the flow.
#[inline(always)]
fn holds(slot: *mut Slot, state: State, flow: &Flow) -> bool {
    // It changes nothing; but what is read after it is not older.
    exchange(slot, state, state) && is_same(slot, flow)
}

/// Compares word by word: left to itself the compiler reads bytes.
#[inline(always)]
fn is_same(slot: *mut Slot, flow: &Flow) -> bool {
    // SAFETY: a flow has the alignment of its first field.
    let [there, flow] = unsafe { [(&raw const (*slot).flow).cast::<u64>(), ptr::from_ref(flow).cast()] };
    for word in 0..size_of::<Flow>() / size_of::<u64>() {
        // SAFETY: within the flows; the slot is a map's. What is read while others write has no use: then the state is another.
        if unsafe { ptr::read_volatile(there.add(word)) != ptr::read(flow.add(word)) } {
            return false;
        }
    }
    true
}

/// Changes the state of a slot if it is `from`. Says whether it was. Nothing is read or written across it.
#[inline(always)]
fn exchange(slot: *mut Slot, from: State, to: State) -> bool {
    let found: u64;
    // SAFETY: the slot is a map's: aligned, and valid for the program's run.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({slot} + 0, r0, {to})",
            slot = in(reg) slot,
            to = in(reg) to.0,
            inlateout("r0") from.0 => found,
            options(nostack)
        );
    }
    found == from.0
}
