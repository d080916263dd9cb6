//! Reports threads whose network namespaces may lack a listener.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie},
    },
    programs::SockContext,
};
use egress_common::listener::ThreadSeen;

use crate::maps;

/// How deep below the root of the hierarchy a served cgroup can be.
const MAX_DEPTH: i32 = 16;

/// Whether the agent knows processes by the ids that the kernel gives, those of the initial pid namespace; set by the loader.
#[unsafe(no_mangle)]
static INITIAL_PIDS: u8 = 0;

/// A program takes milliseconds from its start to its first connect, which is time enough to make listeners.
#[inline(always)]
pub fn on_exec() {
    for level in 0..MAX_DEPTH {
        // SAFETY: the helper reads the current task alone.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup == 0 {
            return;
        }
        if maps::is_served(cgroup) {
            report();
            return;
        }
    }
}

/// Processes also enter namespaces without starting a program.
#[inline(always)]
pub fn on_socket(ctx: &SockContext) {
    // SAFETY: the context is the hook's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if maps::listener_ports(netns).is_none() {
        report();
    }
}

#[inline(always)]
fn report() {
    maps::report_thread(current());
}

/// The current thread, if the agent can know it by its ids.
#[inline(always)]
pub fn current() -> ThreadSeen {
    // SAFETY: the loader sets the value before the program is loaded; a plain read would be folded at compile time.
    if unsafe { ptr::read_volatile(&raw const INITIAL_PIDS) } == 0 {
        return ThreadSeen { pid: 0, tid: 0 };
    }
    let ids = bpf_get_current_pid_tgid();
    ThreadSeen { pid: (ids >> 32) as u32, tid: ids as u32 }
}
