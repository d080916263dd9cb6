//! What the kernel side and the userspace side of egress share.
//!
//! - [`names`]: maps, programs and globals of the eBPF object.
//! - [`address`]: socket addresses in network byte order, both families in one shape.
//! - [`destination`]: what the connect hooks look up.
//! - [`learned`]: what DNS answers add to that.
//! - [`origin`]: where an application was going when it was redirected, and who it was.
//! - [`flow`]: how an accepted connection finds its origin.
//! - [`slot`]: where most origins wait for that.
//! - [`listener`]: the agent's listening ports in one network namespace.
//! - [`outcome`]: what the programs decided, counted.
//! - [`self_test`]: where the agent connects to see whether it is intercepted.
//!
//! Every map type is `repr(C)`, free of padding (checked at compile time) and holds ports and addresses as they are on
//! the wire. [`LAYOUT_VERSION`] changes whenever one of them does.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

#[cfg(feature = "user")]
extern crate std;

pub mod address;
pub mod destination;
pub mod flow;
pub mod learned;
pub mod listener;
pub mod names;
pub mod origin;
pub mod outcome;
pub mod self_test;
pub mod slot;

/// Version of the map layouts in this crate, and of what programs and agents of different builds have to do alike there: which slot a
/// flow has, and which states follow one another ([`slot`]).
pub const LAYOUT_VERSION: u32 = 5;

/// Network namespaces that there is room for.
pub const MAX_NETNS: usize = 16_384;

/// Asserts at compile time that a type has no padding, and lets userspace store it in maps.
macro_rules! map_type {
    ($type:ty, $size:expr) => {
        const _: () = assert!(size_of::<$type>() == $size, "the size differs from the sum of the fields: padding");
        // SAFETY: the type is `Copy`, `repr(C)`, 'static, has no padding, and any bit pattern is a value of it.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use map_type;
