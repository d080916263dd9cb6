//! Sockets by which the agent itself asks name servers. They are marked as its own once it can mark: what it is told is not for
//! the kernel to learn, which has room only for what one application needs.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use hickory_resolver::net::runtime::{RuntimeProvider, TokioRuntimeProvider};
use tokio::net::UdpSocket;

use crate::kernel::OwnSockets;

type Provider = TokioRuntimeProvider;
type Made<S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send>>;

/// Marks sockets, from when it is told how.
#[derive(Clone, Default)]
pub(super) struct Marker(Arc<OnceLock<Mutex<OwnSockets>>>);

impl Marker {
    /// Marks by `own` from now on.
    pub(super) fn mark_by(&self, own: OwnSockets) {
        // It is told once.
        let _ = self.0.set(Mutex::new(own));
    }

    fn mark(&self, socket: &UdpSocket) -> io::Result<()> {
        let Some(own) = self.0.get() else { return Ok(()) };
        own.lock().unwrap_or_else(PoisonError::into_inner).mark(socket).map_err(io::Error::other)
    }
}

/// Tokio, with a mark on each socket that has datagrams: from others nothing is learned.
#[derive(Clone)]
pub(super) struct MarkedProvider {
    tokio: Provider,
    marker: Marker,
}

impl MarkedProvider {
    /// One that marks by `marker`.
    pub(super) fn new(marker: Marker) -> Self {
        Self { tokio: Provider::default(), marker }
    }
}

impl RuntimeProvider for MarkedProvider {
    type Handle = <Provider as RuntimeProvider>::Handle;
    type Timer = <Provider as RuntimeProvider>::Timer;
    type Udp = UdpSocket;
    type Tcp = <Provider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(&self, server: SocketAddr, bind: Option<SocketAddr>, limit: Option<Duration>) -> Made<Self::Tcp> {
        self.tokio.connect_tcp(server, bind, limit)
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Made<Self::Udp> {
        let (bound, marker) = (self.tokio.bind_udp(local, server), self.marker.clone());
        Box::pin(async move {
            let socket = bound.await?;
            marker.mark(&socket)?;
            Ok(socket)
        })
    }
}
