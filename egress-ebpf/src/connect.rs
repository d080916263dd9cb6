//! Redirects connections to configured destinations.

use aya_ebpf::helpers::{bpf_get_current_comm, generated::bpf_ktime_get_boot_ns};
use egress_common::{
    address::IpBytes,
    destination::{Capture, Destination},
    origin::{COMM_LEN, Origin},
    outcome::Outcome,
    self_test,
};

use crate::{
    context::{ConnectContext, Family},
    dns,
    maps::{self, Listening, Socket},
    threads,
};

/// Decides on one connect, and rewrites its address only when all else is done: on any failure the context is as it was.
#[inline(always)]
pub fn connect<F: Family>(ctx: &ConnectContext<'_, F>) -> Outcome {
    if !ctx.is_tcp() {
        return if dns::on_destination(ctx).is_ok() { Outcome::NotTcp } else { Outcome::AskerNotRecorded };
    }
    let Some(socket) = Socket::of(ctx.raw()) else {
        return Outcome::OriginNotRecorded;
    };
    // A socket can connect again after a failure or an AF_UNSPEC connect, to somewhere else.
    if let Some(left) = maps::origin_of(socket) {
        // By the device that it had been bound to before it was redirected, unless it is bound to one again.
        if left.device != 0 && socket.bound_device() == 0 && ctx.bind_device(left.device).is_err() {
            return Outcome::BoundToDevice;
        }
        maps::forget_origin(socket);
    }
    let destination = ctx.destination();
    let netns = ctx.netns();
    let self_test = destination == self_test::DESTINATION;
    let capture = if self_test {
        Some(Capture::Host)
    } else if destination.address.is_loopback() {
        // Whatever the rules say of networks: loopback does not leave the machine, and our listeners are there.
        None
    } else {
        maps::capture(netns, destination)
    };
    let Some(capture) = capture else {
        return Outcome::Unmatched;
    };
    if maps::is_own(socket) {
        return Outcome::OwnSocket;
    }
    let Some(listener) = listener(netns, destination.address) else {
        return Outcome::NoListener;
    };
    match maps::who_listens(ctx.raw(), listener) {
        Listening::Us => {}
        Listening::Nobody => return Outcome::NoListener,
        Listening::Somebody => return Outcome::ForeignListener,
    }
    let device = socket.bound_device();
    if maps::record_origin(socket, origin(destination, device, capture)).is_err() {
        return Outcome::OriginNotRecorded;
    }
    // Bound to a device, the packets to our listener would leave by it. The upstream socket is bound in its place.
    if device != 0 && ctx.release_device().is_err() {
        maps::forget_origin(socket);
        return Outcome::BoundToDevice;
    }
    ctx.set_destination(listener);
    if self_test { Outcome::SelfTest } else { Outcome::Redirected }
}

/// The agent's listener in the socket's network namespace, of the family that the connection speaks.
#[inline(always)]
fn listener(netns: u64, address: IpBytes) -> Option<Destination> {
    let ports = maps::listener_ports(netns)?;
    let (address, port) = match address.as_v4() {
        Some(_) => (IpBytes::LOOPBACK4, ports.v4),
        None => (IpBytes::LOOPBACK6, ports.v6),
    };
    (port != [0, 0]).then_some(Destination::new(address, port))
}

#[inline(always)]
fn origin(destination: Destination, device: u32, capture: Capture) -> Origin {
    Origin {
        // SAFETY: the helper takes nothing.
        recorded_ns: unsafe { bpf_ktime_get_boot_ns() },
        address: destination.address,
        // The name is for the log; a connect without one is as good.
        comm: bpf_get_current_comm().unwrap_or([0; COMM_LEN]),
        pid: threads::current().pid,
        device,
        port: destination.port,
        capture: capture as u8,
        connecting: 0,
        ambiguous: 0,
        reserved: [0; 3],
    }
}
