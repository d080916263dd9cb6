//! Commands of bpf(2) that aya has no function for.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

// Their numbers in `enum bpf_cmd` of linux/bpf.h.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// Opens a pinned map or link; None if there is none.
///
/// # Errors
/// The kernel refuses.
pub(super) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the name lives as long as the call.
    match unsafe { bpf(BPF_OBJ_GET, Attributes { path: name.as_ptr() as u64, fd: 0, flags: 0 }) } {
        // SAFETY: the kernel has just given us this descriptor.
        Ok(descriptor) => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a link run `program` from now on.
///
/// # Errors
/// The kernel refuses.
pub(super) fn update_link(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = [link.as_raw_fd(), program.as_raw_fd(), 0, 0];
    // SAFETY: nothing is pointed to.
    unsafe { bpf(BPF_LINK_UPDATE, attributes) }.map(drop)
}

/// Detaches a link, whoever else has it open.
///
/// # Errors
/// It is detached already, or the kernel refuses.
pub(super) fn detach_link(link: &OwnedFd) -> io::Result<()> {
    // SAFETY: nothing is pointed to.
    unsafe { bpf(BPF_LINK_DETACH, [link.as_raw_fd()]) }.map(drop)
}

/// Removes an element of a hash and gives it (Linux 5.14); None if there is none.
///
/// # Safety
/// The map's keys and values are of these types, of which any bit pattern is a value.
pub(super) unsafe fn take_element<K, V>(map: BorrowedFd<'_>, key: &K) -> Option<V> {
    #[repr(C)]
    struct Attributes {
        map: u32,
        reserved: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let mut value = MaybeUninit::<V>::uninit();
    let attributes = Attributes {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: key and value live as long as the call, and have the sizes that the kernel reads and writes.
    unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, attributes) }.ok()?;
    // SAFETY: the kernel has written it.
    Some(unsafe { value.assume_init() })
}

/// # Safety
/// What the attributes point to is valid for what the command does with it.
unsafe fn bpf<A>(command: libc::c_long, mut attributes: A) -> io::Result<libc::c_int> {
    // SAFETY: the attributes live as long as the call, and their size is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
