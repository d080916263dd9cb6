//! Publishes the origin of a connection that is about to be made, for the listener to take.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_ESTABLISHED, BPF_TCP_SYN_SENT,
    },
    helpers::generated::bpf_get_netns_cookie,
    programs::SockOpsContext,
};
use egress_common::{address::IpBytes, flow::Flow, origin::Origin};

use crate::maps::{self, Socket};

/// At `TCP_CONNECT` the source port is chosen and the SYN not yet sent, so the flow is published before the listener
/// can see the connection. It fails when a redirected flow could not be published.
#[inline(always)]
pub fn on_event(ctx: &SockOpsContext) -> Result<(), ()> {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            let Some(origin) = redirected(ctx) else { return Ok(()) };
            let flow = flow(ctx, origin);
            // The callback tells when the connect has ended.
            let told = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).map_err(drop);
            let published = told.and_then(|()| maps::publish(&flow, origin));
            if published.is_err() {
                // The connect goes on, and must not be taken for one before it that had the same port.
                maps::withdraw(&flow);
            }
            published
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(0) == BPF_TCP_SYN_SENT => {
            let Some(origin) = redirected(ctx) else { return Ok(()) };
            // Only a connect that failed is withdrawn. A client that connected, sent and closed at once is still to be
            // accepted, and is owed its request. So may be one before it; what is there in its place keeps it from another's origin.
            if ctx.arg(1) == BPF_TCP_CLOSE && origin.ambiguous == 0 {
                maps::withdraw(&flow(ctx, origin));
            }
            maps::connect_ended(origin, netns(ctx));
            Ok(())
        }
        // Reset before it has sent anything, it is not accepted, as a listener waits for that.
        BPF_SOCK_OPS_STATE_CB
            if ctx.arg(0) == BPF_TCP_ESTABLISHED && ctx.arg(1) == BPF_TCP_CLOSE && data_segments_sent(ctx) == 0 =>
        {
            if let Some(origin) = redirected(ctx).filter(|origin| origin.ambiguous == 0) {
                maps::withdraw(&flow(ctx, origin));
            }
            Ok(())
        }
        // Told without being asked for, where somebody else's program has put another callback in place of ours. Of connects that fail
        // there we are not told; the agent counts anew where they seem to be many.
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => {
            if let Some(origin) = redirected(ctx) {
                maps::connect_ended(origin, netns(ctx));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Where the socket was going, if it was redirected.
#[inline(always)]
fn redirected(ctx: &SockOpsContext) -> Option<&'static mut Origin> {
    // SAFETY: an aligned read of the context's socket pointer, which is null where there is no full socket.
    Socket::from_ptr(unsafe { (*ctx.ops).__bindgen_anon_2.sk }).and_then(maps::origin_of)
}

#[inline(always)]
fn data_segments_sent(ctx: &SockOpsContext) -> u32 {
    // SAFETY: an aligned four-byte read of a readable field.
    unsafe { ptr::read_volatile(&raw const (*ctx.ops).data_segs_out) }
}

#[inline(always)]
fn netns(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the context is the hook's own.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn flow(ctx: &SockOpsContext, origin: &Origin) -> Flow {
    // The origin's family, not the socket's: a v6 socket that speaks IPv4 has its address in local_ip4.
    let address = match origin.address.as_v4() {
        Some(_) => IpBytes::from_v4(ctx.local_ip4().to_ne_bytes()),
        None => {
            let mut bytes = [0; 16];
            for word in 0..4 {
                // SAFETY: an aligned four-byte read of a readable field, at a constant index.
                let value = unsafe { ptr::read_volatile(&raw const (*ctx.ops).local_ip6[word]) };
                bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_ne_bytes());
            }
            IpBytes(bytes)
        }
    };
    // SAFETY: an aligned four-byte read of a readable field, which the compiler must not make narrower.
    let listener = unsafe { ptr::read_volatile(&raw const (*ctx.ops).remote_port) };
    // A word in network order: on machines of the other order the port is in its upper half. Unlike it, local_port is in host order.
    Flow::new(netns(ctx), address, ctx.local_port() as u16, u32::from_be(listener) as u16)
}
