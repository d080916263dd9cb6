//! Commands of bpf(2) that aya has no function for.

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::bpf_insn;

// Their numbers in `enum bpf_cmd` of linux/bpf.h.
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_FREEZE: libc::c_long = 22;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `struct` of `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Pin {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// How much of what the verifier says is kept, in bytes.
const LOG_LENGTH: usize = 1 << 20;

/// A program to be loaded.
pub(super) struct ProgramCode<'a> {
    /// Its `enum bpf_prog_type`.
    pub(super) kind: u32,
    /// Its `enum bpf_attach_type`; 0 for none.
    pub(super) attach_type: u32,
    pub(super) name: &'a str,
    pub(super) license: &'a CStr,
    pub(super) instructions: &'a [bpf_insn],
    pub(super) types: Option<&'a OwnedFd>,
    /// Of what types functions are: the records, and the length of each.
    pub(super) functions: (&'a [u8], usize),
    /// Which lines of source instructions are of, likewise.
    pub(super) lines: (&'a [u8], usize),
}

/// Has the kernel verify a program.
///
/// # Errors
/// The kernel refuses; with what its verifier says.
pub(super) fn load_program(code: &ProgramCode<'_>) -> Result<OwnedFd, (io::Error, String)> {
    try_program(code, &mut []).or_else(|error| {
        // To write the log costs much more than to verify, so it is asked for only now. Where a signal has interrupted the verifier
        // there is nothing to be said.
        let mut log = vec![0; LOG_LENGTH];
        try_program(code, &mut log).map_err(|_| {
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default();
            (error, log.to_string_lossy().trim_end().to_owned())
        })
    })
}

/// `struct` of `BPF_PROG_LOAD`, as far as it is used.
#[repr(C)]
struct ProgramAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_length: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    attach_type: u32,
    types: u32,
    function_length: u32,
    functions: u64,
    function_count: u32,
    line_length: u32,
    lines: u64,
    line_count: u32,
    reserved: u32,
}

fn try_program(code: &ProgramCode<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    let kept = code.name.len().min(name.len() - 1);
    name[..kept].copy_from_slice(&code.name.as_bytes()[..kept]);
    let records = |(bytes, length): (&[u8], usize)| match bytes.len().checked_div(length) {
        Some(count) if code.types.is_some() => (bytes.as_ptr() as u64, count as u32, length as u32),
        _ => (0, 0, 0),
    };
    let (functions, function_count, function_length) = records(code.functions);
    let (lines, line_count, line_length) = records(code.lines);
    let attributes = ProgramAttributes {
        kind: code.kind,
        instruction_count: code.instructions.len() as u32,
        instructions: code.instructions.as_ptr() as u64,
        license: code.license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_length: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kernel_version: 0,
        flags: 0,
        name,
        device: 0,
        attach_type: code.attach_type,
        types: code.types.map_or(0, |types| types.as_raw_fd().cast_unsigned()),
        function_length,
        functions,
        function_count,
        line_length,
        lines,
        line_count,
        reserved: 0,
    };
    // SAFETY: all of it lives as long as the call, and is as long as it says.
    unsafe { bpf_descriptor(BPF_PROG_LOAD, attributes) }
}

/// Has the kernel take types (BTF).
///
/// # Errors
/// The kernel refuses.
pub(super) fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        types: u64,
        log: u64,
        length: u32,
        log_length: u32,
        log_level: u32,
        reserved: u32,
    }
    let length = types.len() as u32;
    let attributes =
        Attributes { types: types.as_ptr() as u64, log: 0, length, log_length: 0, log_level: 0, reserved: 0 };
    // SAFETY: the types live as long as the call, and are as long as it says.
    unsafe { bpf_descriptor(BPF_BTF_LOAD, attributes) }
}

/// Attaches a program to a cgroup, beside others.
///
/// # Errors
/// The kernel refuses.
pub(super) fn link_to_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let [program, cgroup] = [program, cgroup].map(|descriptor| descriptor.as_raw_fd().cast_unsigned());
    // Links are always "multi"; any flag is refused with EINVAL.
    // SAFETY: nothing is pointed to.
    unsafe { bpf_descriptor(BPF_LINK_CREATE, [program, cgroup, attach_type, 0]) }
}

/// Attaches a program to a tracepoint.
///
/// # Errors
/// The kernel has no such tracepoint, or refuses.
pub(super) fn link_to_tracepoint(program: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        name: u64,
        program: u32,
        reserved: u32,
    }
    let name = CString::new(name)?;
    let program = program.as_raw_fd().cast_unsigned();
    // SAFETY: the name lives as long as the call.
    unsafe { bpf_descriptor(BPF_RAW_TRACEPOINT_OPEN, Attributes { name: name.as_ptr() as u64, program, reserved: 0 }) }
}

/// The id by which the kernel knows a program.
///
/// # Errors
/// The kernel refuses.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    object_id(program)
}

/// The id by which the kernel knows a map.
///
/// # Errors
/// The kernel refuses.
pub(super) fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    object_id(map)
}

fn object_id(object: BorrowedFd<'_>) -> io::Result<u32> {
    #[repr(C)]
    struct Attributes {
        object: u32,
        length: u32,
        information: u64,
    }
    // Type and id are what `struct bpf_prog_info` and `struct bpf_map_info` begin with; the kernel writes no more than it is given room
    // for.
    let mut information = [0_u32; 2];
    let object = object.as_raw_fd().cast_unsigned();
    let length = size_of_val(&information) as u32;
    let attributes = Attributes { object, length, information: information.as_mut_ptr() as u64 };
    // SAFETY: there is as much room as it says, as long as the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, attributes) }?;
    Ok(information[1])
}

/// Pins a map, program or link.
///
/// # Errors
/// The kernel refuses.
pub(super) fn pin(descriptor: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let descriptor = descriptor.as_raw_fd().cast_unsigned();
    // SAFETY: the name lives as long as the call.
    unsafe { bpf(BPF_OBJ_PIN, Pin { path: name.as_ptr() as u64, descriptor, flags: 0 }) }.map(drop)
}

/// Opens a pinned map or link; None if there is none.
///
/// # Errors
/// The kernel refuses.
pub(super) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the name lives as long as the call.
    match unsafe { bpf_descriptor(BPF_OBJ_GET, Pin { path: name.as_ptr() as u64, descriptor: 0, flags: 0 }) } {
        Ok(descriptor) => Ok(Some(descriptor)),
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

/// Writes an element of a map whose keys are of this type and whose values are as long as this one.
///
/// # Errors
/// The kernel refuses.
pub(super) fn set_element(map: BorrowedFd<'_>, key: &u32, value: &[u8]) -> io::Result<()> {
    let (key, value) = (std::ptr::from_ref(key) as u64, value.as_ptr() as u64);
    let attributes = Element { map: map.as_raw_fd().cast_unsigned(), reserved: 0, key, value, flags: 0 };
    // SAFETY: key and value live as long as the call.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, attributes) }.map(drop)
}

/// Has nobody write to a map from userspace any more.
///
/// # Errors
/// The kernel refuses.
pub(super) fn freeze_map(map: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: nothing is pointed to.
    unsafe { bpf(BPF_MAP_FREEZE, [map.as_raw_fd()]) }.map(drop)
}

/// `struct` of commands for an element of a map.
#[repr(C)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Removes an element of a hash and gives it (Linux 5.14); None if there is none.
///
/// # Errors
/// The kernel refuses.
///
/// # Safety
/// The map's keys and values are of these types, of which any bit pattern is a value.
pub(super) unsafe fn take_element<K, V>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let attributes = Element {
        map: map.as_raw_fd().cast_unsigned(),
        reserved: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: key and value live as long as the call, and have the sizes that the kernel reads and writes.
    match unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, attributes) } {
        // SAFETY: the kernel has written it.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// # Safety
/// As of [`bpf`], and the command gives a new descriptor.
unsafe fn bpf_descriptor<A>(command: libc::c_long, attributes: A) -> io::Result<OwnedFd> {
    // SAFETY: the caller knows.
    let descriptor = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// # Safety
/// What the attributes point to is valid for what the command does with it.
unsafe fn bpf<A>(command: libc::c_long, mut attributes: A) -> io::Result<libc::c_int> {
    // SAFETY: the attributes live as long as the call, and their size is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
