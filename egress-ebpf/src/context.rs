//! The hooks' contexts. Nothing else reads or writes `bpf_sock_addr`, which the verifier lets us touch only in certain
//! widths: whole words for addresses and the port.

use core::{marker::PhantomData, ptr};

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt},
    programs::SockAddrContext,
};
use egress_common::{address::IpBytes, destination::Destination};

const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u8 = 17;
/// The protocol of a multipath TCP socket; its subflows are TCP.
const IPPROTO_MPTCP: u32 = 262;

const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_BINDTOIFINDEX: i32 = 62;

/// Where in the context a family keeps its address.
pub trait Family {
    /// Reads the address.
    fn address(ctx: &SockAddrContext) -> IpBytes;
    /// Writes the address; it must be one that the socket's family can have.
    fn set_address(ctx: &SockAddrContext, address: IpBytes);
}

/// An IPv4 socket.
pub struct V4;
/// An IPv6 socket.
pub struct V6;

impl Family for V4 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> IpBytes {
        // SAFETY: the context is valid for the program's run, and this is an aligned four-byte read of a readable field.
        IpBytes::from_v4(unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip4) }.to_ne_bytes())
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: IpBytes) {
        if let Some(v4) = address.as_v4() {
            // SAFETY: as above, and the field is writable in the hooks that use this.
            unsafe { ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, u32::from_ne_bytes(v4)) };
        }
    }
}

impl Family for V6 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> IpBytes {
        let mut bytes = [0; 16];
        for word in 0..4 {
            // SAFETY: as in V4; the constant index stays within the four words.
            let value = unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip6[word]) };
            bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_ne_bytes());
        }
        IpBytes(bytes)
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: IpBytes) {
        for word in 0..4 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|byte| address.0[word * 4 + byte]);
            // SAFETY: as in V4.
            unsafe {
                ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[word], u32::from_ne_bytes([a, b, c, d]));
            }
        }
    }
}

/// The context of a connect or getpeername hook of one family.
pub struct ConnectContext<'a, F> {
    ctx: &'a SockAddrContext,
    family: PhantomData<F>,
}

impl<'a, F: Family> ConnectContext<'a, F> {
    #[inline(always)]
    pub fn new(ctx: &'a SockAddrContext) -> Self {
        Self { ctx, family: PhantomData }
    }

    /// The context for helpers and maps.
    #[inline(always)]
    pub fn raw(&self) -> &SockAddrContext {
        self.ctx
    }

    /// The hooks run for UDP as well; MPTCP connects through the same hook as TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        matches!(self.protocol(), IPPROTO_TCP | IPPROTO_MPTCP)
    }

    /// Whether it is for datagrams.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.protocol() == u32::from(IPPROTO_UDP)
    }

    #[inline(always)]
    fn protocol(&self) -> u32 {
        // SAFETY: an aligned four-byte read of a readable field.
        unsafe { ptr::read_volatile(&raw const (*self.ctx.sock_addr).protocol) }
    }

    /// Where the application connects to.
    #[inline(always)]
    pub fn destination(&self) -> Destination {
        // SAFETY: an aligned four-byte read of a readable field; the port is its low half, in network order.
        let port = unsafe { ptr::read_volatile(&raw const (*self.ctx.sock_addr).user_port) };
        Destination::new(F::address(self.ctx), (port as u16).to_ne_bytes())
    }

    /// Rewrites the address of the system call. The address must be of the socket's family, or v4-mapped.
    #[inline(always)]
    pub fn set_destination(&self, destination: Destination) {
        F::set_address(self.ctx, destination.address);
        // SAFETY: an aligned four-byte write of a writable field.
        unsafe {
            ptr::write_volatile(
                &raw mut (*self.ctx.sock_addr).user_port,
                u32::from(u16::from_ne_bytes(destination.port)),
            );
        }
    }

    /// Does what SO_BINDTODEVICE does, by the device's index.
    #[inline(always)]
    pub fn bind_device(&self, mut index: u32) -> Result<(), ()> {
        let size = size_of::<u32>() as i32;
        // SAFETY: the context is the hook's own, and the length is that of the value.
        let status =
            unsafe { bpf_setsockopt(self.ctx.as_ptr(), SOL_SOCKET, SO_BINDTOIFINDEX, (&raw mut index).cast(), size) };
        if status == 0 { Ok(()) } else { Err(()) }
    }

    /// Undoes SO_BINDTODEVICE.
    #[inline(always)]
    pub fn release_device(&self) -> Result<(), ()> {
        let mut none = [0u8; 1];
        // SAFETY: the context is the hook's own, and the length is that of the buffer.
        let status = unsafe {
            bpf_setsockopt(self.ctx.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, none.as_mut_ptr().cast(), none.len() as i32)
        };
        if status == 0 { Ok(()) } else { Err(()) }
    }

    /// Cookie of the socket's network namespace.
    #[inline(always)]
    pub fn netns(&self) -> u64 {
        // SAFETY: the context is the hook's own.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }
}
