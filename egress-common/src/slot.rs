//! Where most origins wait for the listener: memory that the programs and the agent share. Neither asks the kernel for an entry
//! there, nor for its removal.
//!
//! A flow has one [`Slot`] that its origin can be in. Where that is another's, the origin waits in the map `FLOWS`. An array that is full
//! of what nobody takes therefore costs time, and no connection. What both sides keep to:
//!
//! - *A slot belongs to who has changed its state* from empty to being written, by an atomic comparison: nobody else writes to it, and
//!   nobody reads it until it is full. Nobody waits for it either: a program that is interrupted there costs others the way by `FLOWS`.
//! - *A state never comes again*: it only grows. Whoever reads a slot, and then changes the very state that it had before, has read what one
//!   writer wrote, all of it, and is the only one who has it: another worker, agent, or a program that withdraws the flow has not.
//! - *The newest origin of a flow is the only one.* It is written over an older one, in the slot or in `FLOWS`, and if it is in the slot, an
//!   older one in `FLOWS` is removed before the connection can be accepted. It is not in `FLOWS` while an older one is in the
//!   slot. A flow has no two connects at a time, as there is but one connection from a client's port to a listener's.
//! - *It tells that it was written over another.* The connection of that was reset, and is still to be accepted: both would take it for
//!   theirs. Whoever takes it refuses.

use crate::{flow::Flow, map_type, origin::Origin};

#[cfg(feature = "user")]
mod user;

#[cfg(feature = "user")]
pub use self::user::Slots;

/// More than connections wait at a time where the agent keeps up, as they do for but a moment. Few enough (384 KiB) to stay in the
/// processor's caches, as ports come in turn, and so all slots do; and to be the agent's own memory as a whole, which the kernel counts
/// them as from the start.
pub const SLOTS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 12;

/// Value of the `SLOTS` map.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// A [`State`].
    pub state: u64,
    /// Whose origin is there, unless it is empty.
    pub flow: Flow,
    /// That.
    pub origin: Origin,
}
map_type!(Slot, 8 + 32 + 56);

/// What becomes of a slot: empty, being written, full; and so on from there. A slot that is zero is empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State(pub u64);

/// The rest counts how often the slot was written.
const PHASE: u64 = 3;
const EMPTY: u64 = 0;
const FULL: u64 = 2;

impl State {
    /// Whether nothing is there.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0 & PHASE == EMPTY
    }

    /// Whether all of an origin is there.
    #[inline(always)]
    pub const fn is_full(self) -> bool {
        self.0 & PHASE == FULL
    }

    /// Being written, where it was empty or full.
    #[inline(always)]
    pub const fn claimed(self) -> Self {
        Self((self.0 | PHASE) + 2)
    }

    /// Full, where it was being written.
    #[inline(always)]
    pub const fn written(self) -> Self {
        Self(self.0 + 1)
    }

    /// Empty, where it was full.
    #[inline(always)]
    pub const fn emptied(self) -> Self {
        Self(self.0 + 2)
    }
}

impl Flow {
    /// The slot that it can be in. Ports that follow one another are far apart, and so are those of other network namespaces.
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        /// 2⁶⁴ by the golden ratio.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let port = u16::from_be_bytes(self.port) as u64;
        (self.netns << u16::BITS | port).wrapping_mul(SPREAD).wrapping_shr(u64::BITS - SLOT_BITS) as u32
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use std::{collections::HashSet, vec::Vec};

    use super::*;
    use crate::address::IpBytes;

    #[test]
    fn states_follow_one_another_and_only_grow() {
        let mut state = State(0);
        for _ in 0..3 {
            assert!(state.is_empty() && !state.is_full());
            let claimed = state.claimed();
            assert!(!claimed.is_empty() && !claimed.is_full() && claimed.0 > state.0);
            let full = claimed.written();
            assert!(!full.is_empty() && full.is_full() && full.0 > claimed.0);
            let (replaced, emptied) = (full.claimed(), full.emptied());
            assert!(!replaced.is_empty() && !replaced.is_full() && replaced.0 > full.0);
            assert!(replaced.written().is_full());
            assert!(emptied.0 > full.0 && replaced.0 > emptied.0);
            state = emptied;
        }
    }

    /// The kernel gives out every second port, one after the other from anywhere.
    #[test]
    fn ports_in_turn_have_slots_of_their_own() {
        let slots = |netns, first: u16, step: usize, count: usize| {
            let ports = (first..).step_by(step).take(count);
            ports.map(|port| Flow::new(netns, IpBytes::LOOPBACK4, port, 1).slot()).collect::<Vec<_>>()
        };
        for netns in [1, 2, 4097, 1 << 40] {
            for (first, step) in [(32_768, 1), (32_768, 2), (45_001, 2)] {
                let found = slots(netns, first, step, SLOTS / 2);
                assert!(found.iter().all(|&slot| (slot as usize) < SLOTS));
                let different: HashSet<_> = found.iter().collect();
                assert!(different.len() > SLOTS / 16 * 7, "{netns} {first} {step}: {} slots", different.len());
            }
        }
        let same_port: HashSet<_> = (1..=64).flat_map(|netns| slots(netns, 40_000, 1, 1)).collect();
        assert!(same_port.len() > 60, "{} slots", same_port.len());
    }
}
