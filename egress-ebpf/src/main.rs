//! The kernel side of egress.
//!
//! Each entry point calls one function and turns its outcome into a verdict. Reading order:
//! - [`context`]: the only reader and writer of the hooks' contexts.
//! - [`maps`]: the only user of the maps.
//! - [`connect`]: redirect connections to configured destinations.
//! - [`established`]: publish the origin for the listener.
//! - [`peername`]: answer getpeername with the origin.
//! - [`dns`]: learn the addresses of configured names from DNS answers.
//! - [`threads`]: report threads whose network namespaces may lack a listener.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(clippy::needless_pass_by_value, reason = "the macros of the entry points hand the context over by value")]
#![expect(missing_docs, reason = "the macros of the entry points do not carry documentation over")]

mod connect;
mod context;
mod dns;
mod established;
mod maps;
mod peername;
mod threads;

use aya_ebpf::{
    helpers::generated::bpf_set_retval,
    macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, raw_tracepoint, sock_ops},
    programs::{RawTracePointContext, SkBuffContext, SockAddrContext, SockContext, SockOpsContext},
};
use aya_log_ebpf::debug;
use egress_common::outcome::{Learning, Outcome};

use crate::context::{ConnectContext, Family, V4, V6};

/// Lets the system call go on.
const PROCEED: i32 = 1;
/// Makes the system call fail: with EPERM, or with what [`bpf_set_retval`] was given.
const REJECT: i32 = 0;
/// What an application sees when we refuse: as if nobody listened at the destination.
const ECONNREFUSED: i32 = 111;

/// IPv4 sockets: redirects TCP to configured destinations.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    let outcome = connect::connect(&ConnectContext::<V4>::new(&ctx));
    verdict(&ctx, outcome)
}

/// IPv6 sockets, also those that connect to a v4-mapped address.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    let outcome = connect::connect(&ConnectContext::<V6>::new(&ctx));
    verdict(&ctx, outcome)
}

#[inline(always)]
fn verdict(ctx: &SockAddrContext, outcome: Outcome) -> i32 {
    maps::count(outcome);
    debug!(ctx, "connect: {}", outcome.label());
    match outcome {
        Outcome::Unmatched | Outcome::NotTcp | Outcome::OwnSocket | Outcome::Redirected | Outcome::SelfTest => PROCEED,
        Outcome::NoListener
        | Outcome::ForeignListener
        | Outcome::OriginNotRecorded
        | Outcome::BoundToDevice
        | Outcome::FlowNotPublished
        | Outcome::AskerNotRecorded => {
            // SAFETY: the helper only stores the number; the hook type has it since Linux 5.18.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            REJECT
        }
    }
}

/// IPv4 sockets: answers with the origin.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    peername::answer(&ConnectContext::<V4>::new(&ctx));
    PROCEED
}

/// IPv6 sockets: answers with the origin.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    peername::answer(&ConnectContext::<V6>::new(&ctx));
    PROCEED
}

/// Publishes the origin of a connection that is about to be made.
#[sock_ops]
pub fn publish_origin(ctx: SockOpsContext) -> u32 {
    if established::on_event(&ctx).is_err() {
        maps::count(Outcome::FlowNotPublished);
        debug!(&ctx, "connect: {}", Outcome::FlowNotPublished.label());
    }
    PROCEED as u32
}

/// IPv4 datagrams of sockets that are not connected: notes who asks name servers.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    note_asker(&ConnectContext::<V4>::new(&ctx))
}

/// IPv6 datagrams of sockets that are not connected: notes who asks name servers.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    note_asker(&ConnectContext::<V6>::new(&ctx))
}

/// What is asked without our listening to the answer could lead out in clear.
#[inline(always)]
fn note_asker<F: Family>(ctx: &ConnectContext<'_, F>) -> i32 {
    if dns::on_destination(ctx).is_ok() { PROCEED } else { REJECT }
}

/// Learns addresses from DNS answers before the application sees them. Answers that cannot be learned are dropped.
#[cgroup_skb(ingress)]
pub fn learn_names(ctx: SkBuffContext) -> i32 {
    match dns::on_packet(&ctx) {
        Ok(false) => PROCEED,
        Ok(true) => {
            maps::count_learning(Learning::Learned);
            debug!(&ctx, "dns answer: {}", Learning::Learned.label());
            PROCEED
        }
        Err(dns::NotLearned) => {
            maps::count_learning(Learning::Refused);
            debug!(&ctx, "dns answer: {}", Learning::Refused.label());
            REJECT
        }
    }
}

/// Reports network namespaces that have no listener yet.
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    threads::on_socket(&ctx);
    PROCEED
}

/// Reports programs that are started in a served cgroup.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_ctx: RawTracePointContext) -> i32 {
    threads::on_exec();
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lets GPL-compatible programs alone call the socket helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
