//! Listeners inside the applications' network namespaces: accept, and take the origin that the kernel recorded.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    net::{self, IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use egress_common::{destination::Destination, origin::Origin, self_test};
use mio::net::TcpListener;
use socket2::SockRef;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{
        oneshot::{self, error::TryRecvError},
        watch,
    },
    task,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    drain::Drain,
    netns::Netns,
    request::Accepted,
    socket::{self, LOOPBACK, SocketFactory},
    worker::{PodLoad, Vital, Worker},
};

/// Pause after accept fails for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long it is not warned of it again.
const WARNED: Duration = Duration::from_secs(60);
/// Connections that are accepted before others whom the worker serves have their turn.
const ACCEPT_AT_ONCE: usize = 64;
/// There were two, and one origin: nobody knows whose.
const AMBIGUOUS: &str =
    "closed a connection whose origin may be another's: one from its port was reset before it was accepted";

/// A listening socket in a network namespace, for a worker.
pub struct Listener {
    netns: Netns,
    socket: Arc<TcpListener>,
    /// Its port.
    port: u16,
    /// Resolves when the handle is dropped.
    closed: oneshot::Receiver<()>,
    gone: CancellationToken,
    load: Arc<PodLoad>,
}

/// The listeners of one network namespace, for the control thread. Dropping it closes them, after what is already in
/// their queues has been accepted.
pub struct Handle {
    /// The namespace.
    pub netns: Netns,
    /// Ends all connections that were accepted here.
    pub gone: CancellationToken,
    /// How many of them there are.
    pub load: Arc<PodLoad>,
    /// Port on 127.0.0.1; 0 where the family is disabled.
    pub v4: u16,
    /// Port on ::1; 0 where the family is disabled.
    pub v6: u16,
    /// The sockets.
    pub sockets: Vec<Arc<TcpListener>>,
    _open: Vec<oneshot::Sender<()>>,
}

/// Listens on both loopback addresses of a network namespace, where another agent has not left a socket that does. Whether it `defers`
/// connections on which nothing has come depends on who speaks first on them.
///
/// # Errors
/// Neither family is there, or one that is cannot be listened on.
pub fn open(
    sockets: &SocketFactory,
    netns: &Netns,
    inherited: Vec<net::TcpListener>,
    defers: bool,
) -> io::Result<(Handle, Vec<Listener>)> {
    let gone = CancellationToken::new();
    let load = Arc::<PodLoad>::default();
    let mut inherited: HashMap<IpAddr, net::TcpListener> =
        inherited.into_iter().map(|socket| Ok((socket.local_addr()?.ip(), socket))).collect::<io::Result<_>>()?;
    let follows = !inherited.is_empty();
    let mut handle = Handle {
        netns: netns.clone(),
        gone: gone.clone(),
        load: load.clone(),
        v4: 0,
        v6: 0,
        sockets: Vec::new(),
        _open: Vec::new(),
    };
    let mut listeners = Vec::new();
    let mut failure = None;
    for address in LOOPBACK {
        let socket = match inherited.remove(&address).map_or_else(|| sockets.listen(netns, address), Ok) {
            Ok(socket) => Arc::new(TcpListener::from_std(socket)),
            // What is in the way may pass, unless there is no such family. But what another agent has left is not thrown away for it.
            Err(error) if is_disabled(&error) || follows => {
                tracing::debug!(netns = ?netns.cookie(), %address, %error, "cannot listen");
                failure = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        // Accepted sockets have it from the listener, which may be another agent's. This cannot fail on a socket.
        let _ = SockRef::from(&*socket).set_tcp_nodelay(true);
        socket::defer_accept(&*socket, defers);
        let port = socket.local_addr()?.port();
        match address {
            IpAddr::V4(_) => handle.v4 = port,
            IpAddr::V6(_) => handle.v6 = port,
        }
        handle.sockets.push(socket.clone());
        let (open, closed) = oneshot::channel();
        handle._open.push(open);
        let (gone, load) = (gone.clone(), load.clone());
        listeners.push(Listener { netns: netns.clone(), socket, port, closed, gone, load });
    }
    match failure {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok((handle, listeners)),
    }
}

/// Whether an address cannot be listened on as its family is not there.
fn is_disabled(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Accepts connections until the listener's handle is dropped.
pub async fn accept(worker: Rc<Worker>, listener: Listener, draining: watch::Receiver<Drain>) {
    let Listener { netns, socket, port, mut closed, gone, load } = listener;
    let here = Here { netns, port, gone, load };
    let _vital = Vital;
    let mut failures = Failures::default();
    let socket = loop {
        // SAFETY: the listener owns its descriptor, which neither closes nor changes before it is dropped.
        match unsafe { AsyncFd::register_with_interest(socket.clone(), Interest::READABLE) } {
            Ok(socket) => break socket,
            Err(error) => failures.pause_after(&worker, &here, &error.into()).await,
        }
        if closed.try_recv() != Err(TryRecvError::Empty) {
            return;
        }
    };
    let mut open = true;
    while open {
        let ready = tokio::select! {
            ready = socket.readable() => Some(ready),
            _ = &mut closed => None,
        };
        open = ready.is_some();
        match accept_all(&worker, &here, socket.get_ref(), &draining).await {
            Ok(()) => {
                if let Some(Ok(mut guard)) = ready {
                    guard.clear_ready();
                }
            }
            Err(error) => failures.pause_after(&worker, &here, &error).await,
        }
    }
}

/// Failures to accept, of which it is warned now and then.
#[derive(Default)]
struct Failures {
    warned: Option<Instant>,
}

impl Failures {
    async fn pause_after(&mut self, worker: &Worker, here: &Here, error: &io::Error) {
        worker.metrics.accept_failures.inc();
        if self.warned.is_none_or(|warned| warned.elapsed() > WARNED) {
            self.warned = Some(Instant::now());
            tracing::warn!(netns = ?here.netns, %error, "cannot accept connections; they wait");
        }
        time::sleep(ACCEPT_RETRY).await;
    }
}

/// Where connections are accepted: a network namespace, and the listener's port there.
struct Here {
    netns: Netns,
    port: u16,
    gone: CancellationToken,
    /// What of it is being served.
    load: Arc<PodLoad>,
}

/// Accepts what is in the queue, be it that it fills as fast. Of what comes after that epoll tells anew. To accept in vain would cost as
/// much as a connection does, as the kernel makes the socket first, and then looks whether there is one.
async fn accept_all(
    worker: &Rc<Worker>,
    here: &Here,
    socket: &TcpListener,
    draining: &watch::Receiver<Drain>,
) -> io::Result<()> {
    loop {
        let mut left = socket::queued(socket).min(ACCEPT_AT_ONCE);
        let is_all = left < ACCEPT_AT_ONCE;
        while left > 0 {
            match socket.accept() {
                Ok((stream, client)) => {
                    left -= 1;
                    admit(worker, here, stream.into(), client, draining);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // The client has gone already, or a signal came.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) => return Err(error),
            }
        }
        if is_all {
            return Ok(());
        }
        task::yield_now().await;
    }
}

/// A connection whose origin the kernel does not know was not redirected by us, and is closed: there is no place that it
/// could go to. So is one whose origin may be another's.
fn admit(
    worker: &Rc<Worker>,
    here: &Here,
    mut stream: net::TcpStream,
    client: SocketAddr,
    draining: &watch::Receiver<Drain>,
) {
    let Some(origin) = take_origin(worker, here, client) else {
        worker.metrics.unknown_origin.inc();
        return;
    };
    if Destination::new(origin.address, origin.port) == self_test::DESTINATION {
        // It fits into the socket's buffer. Without it the self-test says what is wrong.
        let _ = stream.write_all(self_test::ANSWER);
        socket::close_in_order(&stream);
        return;
    }
    let from = socket::Place { netns: here.netns.clone(), device: origin.device, load: here.load.clone() };
    worker.dispatch(stream, Accepted { from, gone: here.gone.clone(), origin }, draining);
}

/// The origin of a connection, if it is sure to be its own. Else it is said why not.
fn take_origin(worker: &Worker, here: &Here, client: SocketAddr) -> Option<Origin> {
    let netns = &here.netns;
    match worker.flows.take(netns.cookie(), client, here.port) {
        Ok(Some(origin)) if origin.is_ambiguous() => tracing::info!(?netns, %client, "{AMBIGUOUS}"),
        Ok(Some(origin)) => return Some(origin),
        Ok(None) => tracing::debug!(?netns, %client, "closed a connection without origin"),
        Err(error) => {
            tracing::warn!(?netns, %client, %error, "closed a connection whose origin cannot be read");
        }
    }
    None
}
