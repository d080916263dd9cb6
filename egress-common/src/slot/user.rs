//! The slots as the agent has them.

use std::{
    io,
    mem::{offset_of, transmute},
    ops::Deref,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use super::{SLOTS, Slot, State};
use crate::{flow::Flow, origin::Origin};

const FLOW_WORDS: usize = size_of::<Flow>() / 8;
const ORIGIN_WORDS: usize = size_of::<Origin>() / 8;

/// The memory of the map `SLOTS`. Threads share it.
pub struct Slots(NonNull<SharedSlot>);

// SAFETY: it is nothing but atomics, which stay where they are.
unsafe impl Send for Slots {}
// SAFETY: likewise.
unsafe impl Sync for Slots {}

impl Slots {
    const LENGTH: usize = SLOTS * size_of::<Slot>();

    /// Maps what the descriptor is of: the map `SLOTS`.
    ///
    /// # Errors
    /// It is something else, or there is no room for it.
    pub fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: memory that nobody else has, where the kernel has room.
        let mapped =
            unsafe { libc::mmap(ptr::null_mut(), Self::LENGTH, protection, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(mapped.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Takes the origin of a flow, if it is here: nobody else gets it.
    pub fn take(&self, flow: &Flow) -> Option<Origin> {
        self.get(flow.slot() as usize)?.take(flow)
    }

    /// Removes origins for which this is true, and says how many.
    pub fn remove_if(&self, mut obsolete: impl FnMut(&Origin) -> bool) -> usize {
        self.iter().filter(|slot| slot.remove_if(&mut obsolete)).count()
    }
}

impl Deref for Slots {
    type Target = [SharedSlot];

    fn deref(&self) -> &[SharedSlot] {
        // SAFETY: as many are mapped for as long as this lives, from the begin of a page on. Of atomics every bit pattern is a value.
        unsafe { slice::from_raw_parts(self.0.as_ptr(), SLOTS) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: it was mapped as long, and nothing of it is borrowed any more. There is nothing to be done if this fails.
        let _ = unsafe { libc::munmap(self.0.as_ptr().cast(), Self::LENGTH) };
    }
}

/// A [`Slot`] that others change at the same time.
#[repr(C)]
pub struct SharedSlot {
    state: AtomicU64,
    flow: [AtomicU64; FLOW_WORDS],
    origin: [AtomicU64; ORIGIN_WORDS],
}

const _: () = assert!(
    size_of::<SharedSlot>() == size_of::<Slot>()
        && offset_of!(SharedSlot, flow) == offset_of!(Slot, flow)
        && offset_of!(SharedSlot, origin) == offset_of!(Slot, origin)
);

impl SharedSlot {
    /// What is read after this is at least as new.
    fn state(&self) -> State {
        State(self.state.load(Acquire))
    }

    fn take(&self, flow: &Flow) -> Option<Origin> {
        loop {
            let state = self.state();
            // Another's that comes while this is read is none of ours: ours was here before its connection could be accepted.
            if !state.is_full() || self.flow() != *flow {
                return None;
            }
            let origin = self.origin();
            if self.empty(state) {
                return Some(origin);
            }
        }
    }

    fn remove_if(&self, obsolete: impl FnOnce(&Origin) -> bool) -> bool {
        let state = self.state();
        state.is_full() && obsolete(&self.origin()) && self.empty(state)
    }

    /// Empties the slot if it has still the same state, and so what was read of it since. Says whether it had.
    fn empty(&self, state: State) -> bool {
        self.state.compare_exchange(state.0, state.emptied().0, Release, Relaxed).is_ok()
    }

    fn flow(&self) -> Flow {
        // SAFETY: of the same size, and every bit pattern is a value of it.
        unsafe { transmute(self.flow.each_ref().map(|word| word.load(Relaxed))) }
    }

    fn origin(&self) -> Origin {
        // SAFETY: of the same size, and every bit pattern is a value of it.
        unsafe { transmute(self.origin.each_ref().map(|word| word.load(Relaxed))) }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        array,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        thread,
    };

    use super::*;
    use crate::address::IpBytes;

    fn slot() -> SharedSlot {
        SharedSlot {
            state: AtomicU64::new(0),
            flow: array::from_fn(|_| AtomicU64::new(0)),
            origin: array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn flow(port: u16) -> Flow {
        Flow::new(7, IpBytes::LOOPBACK4, port, 1)
    }

    /// Does what the program does. Says whether it wrote over another, if it could.
    fn publish(slot: &SharedSlot, flow: Flow, number: u64) -> Option<bool> {
        let state = slot.state();
        let free = state.is_empty() || state.is_full() && slot.flow() == flow;
        let claimed = state.claimed();
        if !free || slot.state.compare_exchange(state.0, claimed.0, SeqCst, SeqCst).is_err() {
            return None;
        }
        // SAFETY: as where it is read.
        let words: [u64; FLOW_WORDS] = unsafe { transmute(flow) };
        for (word, value) in slot.flow.iter().zip(words) {
            word.store(value, Relaxed);
        }
        slot.origin.iter().for_each(|word| word.store(number, Relaxed));
        slot.state.swap(claimed.written().0, SeqCst);
        Some(state.is_full())
    }

    #[test]
    fn a_slot_is_one_flow_s_until_its_origin_is_taken() {
        let slot = slot();
        assert!(slot.take(&flow(1)).is_none());
        assert_eq!((publish(&slot, flow(1), 1), publish(&slot, flow(2), 2)), (Some(false), None));
        assert!(slot.take(&flow(2)).is_none());
        // The same flow's next connection.
        assert_eq!(publish(&slot, flow(1), 3), Some(true));
        assert_eq!(slot.take(&flow(1)).map(|origin| origin.recorded_ns), Some(3));
        assert!(slot.take(&flow(1)).is_none() && publish(&slot, flow(2), 4) == Some(false));
        assert!(!slot.remove_if(|origin| origin.recorded_ns != 4) && slot.state().is_full());
        assert!(slot.remove_if(|origin| origin.recorded_ns == 4) && slot.state().is_empty());
        assert!(slot.take(&flow(2)).is_none());
    }

    #[test]
    fn what_is_being_written_is_not_there() {
        let slot = slot();
        assert!(publish(&slot, flow(1), 1).is_some());
        let full = slot.state();
        // As a program does that is interrupted.
        slot.state.store(full.claimed().0, SeqCst);
        assert!(slot.take(&flow(1)).is_none() && publish(&slot, flow(1), 2).is_none() && !slot.remove_if(|_| true));
        // Whoever had begun to take what was there before has nothing.
        assert!(!slot.empty(full));
    }

    /// Says when a thread ends, be it in panic.
    struct Over<'a>(&'a AtomicUsize);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }

    /// Two flows fight for a slot that four others take from, and two sweep.
    #[test]
    fn each_origin_is_taken_once_and_whole() {
        const COUNT: u64 = 200_000;
        let slot = &slot();
        let [published, overwritten, gone, writing] = &[0, 0, 0, 2].map(AtomicUsize::new);
        thread::scope(|scope| {
            for parity in [0, 1] {
                scope.spawn(move || {
                    let _over = Over(writing);
                    for number in (1..COUNT).filter(|number| number % 2 == parity) {
                        let own = flow(parity as u16);
                        // Each third connection fails at once.
                        let withdraws = number % 3 == 0;
                        let is_there = publish(slot, own, number);
                        published.fetch_add(is_there.is_some().into(), SeqCst);
                        overwritten.fetch_add((is_there == Some(true)).into(), SeqCst);
                        if is_there.is_some()
                            && withdraws
                            && let Some(origin) = slot.take(&own)
                        {
                            assert_eq!(origin.recorded_ns, number);
                            gone.fetch_add(1, SeqCst);
                        }
                    }
                });
            }
            for parity in 0..4 {
                scope.spawn(move || {
                    let mut last = 0;
                    while writing.load(SeqCst) > 0 {
                        let Some(origin) = slot.take(&flow(parity % 2)) else { continue };
                        let number = origin.recorded_ns;
                        assert_eq!(number % 2, u64::from(parity % 2), "another's");
                        assert!(number > last, "{number} after {last}");
                        // SAFETY: as where it is read.
                        let words: [u64; ORIGIN_WORDS] = unsafe { transmute(origin) };
                        assert_eq!(words, [number; ORIGIN_WORDS], "torn");
                        last = number;
                        gone.fetch_add(1, SeqCst);
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(move || {
                    while writing.load(SeqCst) > 0 {
                        gone.fetch_add(slot.remove_if(|origin| origin.recorded_ns % 5 == 0).into(), SeqCst);
                    }
                });
            }
        });
        let left = usize::from(slot.state().is_full());
        let gone = gone.load(SeqCst) + left;
        let [published, overwritten] = [published, overwritten].map(|count| count.load(SeqCst));
        assert!(gone > 0 && gone + overwritten == published, "{gone} and {overwritten} of {published}");
        assert!(left == 1 || slot.state().is_empty());
    }
}
