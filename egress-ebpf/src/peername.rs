//! Answers getpeername with the origin, so that an application which checks its peer sees whom it called.

use egress_common::{address::IpBytes, destination::Destination};

use crate::{
    context::{ConnectContext, Family},
    maps::{self, Socket},
};

/// Writes the origin over the peer's address where the socket was redirected. What a multipath socket has recorded may be
/// of an earlier connection; then its peer is not the listener.
#[inline(always)]
pub fn answer<F: Family>(ctx: &ConnectContext<'_, F>) {
    if ![IpBytes::LOOPBACK4, IpBytes::LOOPBACK6].contains(&ctx.destination().address) {
        return;
    }
    if let Some(origin) = Socket::of(ctx.raw()).and_then(maps::origin_of) {
        ctx.set_destination(Destination::new(origin.address, origin.port));
    }
}
