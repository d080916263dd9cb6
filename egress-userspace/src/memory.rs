//! Memory that is free goes back to the system: the allocator keeps it until somebody allocates again, which an idle agent does not.
//! And what is large is not copied on its way to the heap.

use std::{
    alloc::{GlobalAlloc, Layout},
    pin::Pin,
};

use libmimalloc_sys::{
    mi_free, mi_malloc, mi_malloc_aligned, mi_realloc, mi_realloc_aligned, mi_zalloc, mi_zalloc_aligned,
};

/// mimalloc. Its crate names an alignment each time, which takes it longer even where it would have had it anyway, as nearly always.
pub struct Allocator;

/// Whether mimalloc aligns a block of this size like this by itself: to a word, and from two words on to 16 bytes
/// (`MI_ALIGN2W` and `MI_PAGE_MIN_START_BLOCK_ALIGN` in its source).
fn is_usual(size: usize, align: usize) -> bool {
    align <= size_of::<usize>() || align <= 16 && size >= 16
}

// SAFETY: mimalloc gives blocks of the size and the alignment that it is asked for, and takes back what it has given.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: any size and any alignment that a layout can have will do.
        unsafe { if is_usual(size, align) { mi_malloc(size) } else { mi_malloc_aligned(size, align) } }.cast()
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (size, align) = (layout.size(), layout.align());
        // SAFETY: as above.
        unsafe { if is_usual(size, align) { mi_zalloc(size) } else { mi_zalloc_aligned(size, align) } }.cast()
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: it comes from here.
        unsafe { mi_free(block.cast()) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let (block, align) = (block.cast(), layout.align());
        // SAFETY: it comes from here.
        unsafe { if is_usual(size, align) { mi_realloc(block, size) } else { mi_realloc_aligned(block, size, align) } }
            .cast()
    }
}

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
