//! Reports network namespaces without a listener.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_get_netns_cookie},
    programs::SockContext,
};
use egress_common::listener::NetnsSeen;

use crate::maps;

/// The first socket of a new namespace, often the resolver's, tells the agent about it before the first connect.
#[inline(always)]
pub fn report(ctx: &SockContext) {
    // SAFETY: the context is the hook's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if maps::listener_ports(netns).is_none() {
        let ids = bpf_get_current_pid_tgid();
        maps::report_netns(NetnsSeen { netns, pid: (ids >> 32) as u32, tid: ids as u32 });
    }
}
