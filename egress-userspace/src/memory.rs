//! Memory that is free goes back to the system: the allocator keeps it until somebody allocates again, which an idle agent does not.
//! And what is large is not copied on its way to the heap.

use std::pin::Pin;

/// Gives back what is free, at once: much of what a start or a reload takes is needed for a moment, and so is much of the code,
/// which comes back from the executable's file when it is used.
pub fn release() {
    collect(true);
    unmap_code();
}

/// Gives back what this thread has not needed for a while.
pub fn tidy() {
    collect(false);
}

/// A future on the heap, which is made there: one that is moved there is copied with all the room that it will ever need.
#[inline(always)]
pub fn boxed<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), make()))
}

fn collect(at_once: bool) {
    // SAFETY: it is for any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(at_once) };
}

/// Has the kernel forget where the code and constants are in memory, until they are used.
fn unmap_code() {
    unsafe extern "C" {
        /// Where the executable and its code begin and end (GNU ld, "PROVIDE").
        static __executable_start: u8;
        static etext: u8;
    }
    let (start, end) = (&raw const __executable_start, &raw const etext);
    let length = end.addr() - start.addr();
    // SAFETY: these pages are the file's, nobody writes to them, and they come back as they were. What is written to begins on a
    // page of its own.
    unsafe { libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED) };
}
