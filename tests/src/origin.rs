//! An origin inside the test: it keeps each request as it came, byte for byte, and answers what the test says, also what
//! no sane server would.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    netns::Netns,
    process::lock,
    wait::{PATIENCE, wait_until},
};

mod exchange;
mod frames;
mod http1;
mod http2;
mod script;
mod tls;

pub use exchange::{Reply, Request, news_site};
pub use frames::{Frames, code};
pub use script::{Script, Wire, script};
pub use tls::{ServerTls, TlsSeen};

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;
type Scripts = dyn Fn(&Request) -> Option<Script> + Send + Sync;

type FrameScripts = dyn Fn(Frames) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync;

/// An origin to be given addresses.
pub struct OriginBuilder<'bed> {
    netns: &'bed Netns,
    ports: Vec<(SocketAddr, Option<Arc<ServerConfig>>)>,
    handler: Arc<Handler>,
    scripts: Arc<Scripts>,
    frames: Option<Arc<FrameScripts>>,
    web_sockets: bool,
    prior_knowledge: bool,
    accepts: usize,
}

impl<'bed> OriginBuilder<'bed> {
    /// An origin in `netns` that answers as `news_site`.
    pub fn new(netns: &'bed Netns) -> Self {
        Self {
            netns,
            ports: Vec::new(),
            handler: Arc::new(news_site),
            scripts: Arc::new(|_| None),
            frames: None,
            web_sockets: false,
            prior_knowledge: false,
            accepts: usize::MAX,
        }
    }

    /// Offers WebSockets over HTTP/2 (RFC 8441).
    #[must_use]
    pub fn web_sockets(mut self) -> Self {
        self.web_sockets = true;
        self
    }

    /// Listens with TLS on these addresses.
    pub fn tls(mut self, addresses: &[SocketAddr], tls: &ServerTls) -> Result<Self> {
        let config = tls.config()?;
        self.ports.extend(addresses.iter().map(|address| (*address, Some(Arc::clone(&config)))));
        Ok(self)
    }

    /// Listens in clear on these addresses.
    #[must_use]
    pub fn clear(mut self, addresses: &[SocketAddr]) -> Self {
        self.ports.extend(addresses.iter().map(|address| (*address, None)));
        self
    }

    /// Answers each request, in clear or not, by this function. It runs on the origin's only thread: it must not block.
    #[must_use]
    pub fn handler(mut self, handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        self.handler = Arc::new(handler);
        self
    }

    /// Asked for each HTTP/1 request as soon as its head is there: a script takes the connection over from then on, body
    /// included.
    #[must_use]
    pub fn scripts(mut self, scripts: impl Fn(&Request) -> Option<Script> + Send + Sync + 'static) -> Self {
        self.scripts = Arc::new(scripts);
        self
    }

    /// Serves each HTTP/2 connection by this conversation of frames. Its requests are not among those of the origin.
    #[must_use]
    pub fn frames<F>(mut self, conversation: impl Fn(Frames) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.frames = Some(Arc::new(move |frames| Box::pin(conversation(frames))));
        self
    }

    /// Speaks HTTP/2 where ALPN has led to nothing.
    #[must_use]
    pub fn prior_knowledge(mut self) -> Self {
        self.prior_knowledge = true;
        self
    }

    /// Accepts so many connections. Others are left to the kernel, as by a server that is busy.
    #[must_use]
    pub fn accepts(mut self, count: usize) -> Self {
        self.accepts = count;
        self
    }

    /// Starts it. It accepts connections when this returns.
    pub fn start(self) -> Result<Origin> {
        let netns = self.netns.try_clone_handle()?;
        let shared = Arc::new(Shared {
            handler: self.handler,
            scripts: self.scripts,
            frames: self.frames,
            web_sockets: self.web_sockets,
            prior_knowledge: self.prior_knowledge,
            accepts: self.accepts,
            requests: Mutex::default(),
            failures: Mutex::default(),
            count: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let (ports, serving) = (self.ports, Arc::clone(&shared));
        let thread = thread::spawn(move || {
            let runtime = nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(anyhow::Error::from)
                .and_then(|()| Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
            match runtime {
                Ok(runtime) => runtime.block_on(serve(ports, serving, &ready, stopped)),
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        started.recv().unwrap_or_else(|_| Err(anyhow!("the origin's thread ended early")))?;
        Ok(Origin { shared, stop: Some(stop), thread: Some(thread) })
    }
}

/// A running origin.
#[derive(Debug)]
pub struct Origin {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    /// The requests so far, oldest first. A request is here before its answer is sent.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// The requests so far, which are then forgotten.
    pub fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut *lock(&self.shared.requests))
    }

    /// Waits until there are `count` requests, and fails if there are more.
    pub fn wait_for_requests(&self, count: usize) -> Result<Vec<Request>> {
        wait_until(&format!("the origin to see {count} requests"), PATIENCE, || self.requests().len() >= count)?;
        let requests = self.requests();
        if requests.len() > count {
            bail!("{count} requests were expected, the origin saw {}: {requests:?}", requests.len());
        }
        Ok(requests)
    }

    /// The only request there ever was.
    pub fn only_request(&self) -> Result<Request> {
        self.wait_for_requests(1)?.pop().context("no request")
    }

    /// How many TCP connections were accepted.
    pub fn connections(&self) -> usize {
        self.shared.count.load(Ordering::Acquire)
    }

    /// How many of them have not ended.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// What went wrong with connections: TLS alerts of clients that did not like the certificate, broken requests.
    pub fn failures(&self) -> Vec<String> {
        lock(&self.shared.failures).clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Shared {
    handler: Arc<Handler>,
    scripts: Arc<Scripts>,
    frames: Option<Arc<FrameScripts>>,
    web_sockets: bool,
    prior_knowledge: bool,
    accepts: usize,
    requests: Mutex<Vec<Request>>,
    failures: Mutex<Vec<String>>,
    count: AtomicUsize,
    open: AtomicUsize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl Shared {
    fn answer(&self, request: Request) -> Reply {
        let reply = (self.handler)(&request);
        lock(&self.requests).push(request);
        reply
    }

    /// The script for a request of which only the head is there, if there is one.
    fn script(&self, request: &Request) -> Option<Script> {
        let script = (self.scripts)(request)?;
        lock(&self.requests).push(request.clone());
        Some(script)
    }
}

/// What is known of a connection before its first request.
#[derive(Clone, Debug)]
struct Peer {
    connection: usize,
    client: SocketAddr,
    server: SocketAddr,
    tls: Option<TlsSeen>,
}

/// Listens, also where a process that is about to become another program has the socket of an earlier origin for a moment.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let end = Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => {
                sleep(Duration::from_millis(5)).await;
            }
            bound => return bound,
        }
    }
}

async fn serve(
    ports: Vec<(SocketAddr, Option<Arc<ServerConfig>>)>,
    shared: Arc<Shared>,
    ready: &mpsc::Sender<Result<()>>,
    stopped: oneshot::Receiver<()>,
) {
    let mut acceptors = JoinSet::new();
    for (address, config) in ports {
        match bind(address).await {
            Ok(listener) => drop(acceptors.spawn(accept(listener, config.map(TlsAcceptor::from), Arc::clone(&shared)))),
            Err(error) => {
                ready.send(Err(anyhow!(error).context(format!("the origin cannot listen on {address}")))).ok();
                return;
            }
        }
    }
    ready.send(Ok(())).ok();
    stopped.await.ok();
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while shared.count.load(Ordering::Acquire) < shared.accepts
        && let Ok((stream, client)) = listener.accept().await
    {
        let connection = shared.count.fetch_add(1, Ordering::AcqRel);
        shared.open.fetch_add(1, Ordering::AcqRel);
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            if let Err(error) = connection_of(stream, client, connection, tls, &shared).await {
                lock(&shared.failures).push(format!("{error:#}"));
            }
            shared.open.fetch_sub(1, Ordering::AcqRel);
        });
        while connections.try_join_next().is_some() {}
    }
    pending::<()>().await;
}

async fn connection_of(
    stream: TcpStream,
    client: SocketAddr,
    connection: usize,
    tls: Option<TlsAcceptor>,
    shared: &Arc<Shared>,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut peer = Peer { connection, client, server: stream.local_addr()?, tls: None };
    let Some(acceptor) = tls else {
        return http1::serve(stream, peer, shared).await;
    };
    let stream = acceptor.accept(stream).await.context("TLS handshake")?;
    let seen = TlsSeen::of(stream.get_ref().1);
    let http2 = seen.alpn.as_deref().map_or(shared.prior_knowledge, |picked| picked == "h2");
    peer.tls = Some(seen);
    if http2 && let Some(conversation) = &shared.frames {
        let wire = Wire { received: Vec::new(), stream: Box::new(stream) };
        return conversation(Frames::new(connection, wire)).await;
    }
    if http2 { http2::serve(stream, peer, shared).await } else { http1::serve(stream, peer, shared).await }
}
