//! Memory that is free goes back to the system: the allocator keeps it until somebody allocates again, which an idle agent does not.

/// Gives back what is free, at once: much of what a start or a reload takes is needed for a moment.
pub fn release() {
    collect(true);
}

/// Gives back what this thread has not needed for a while.
pub fn tidy() {
    collect(false);
}

fn collect(at_once: bool) {
    // SAFETY: it is for any thread at any time.
    unsafe { libmimalloc_sys::mi_collect(at_once) };
}
