//! The administrative endpoint: `/readyz`, `/healthz`, `/metrics`.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::{AbortHandle, yield_now},
    time::{sleep, timeout},
};

use crate::telemetry::metrics::Metrics;

/// Connections at the same time. One more takes the place of the one that has waited longest without having asked anything; if all
/// have, it waits.
const CONNECTIONS: usize = 64;
/// For the request and its response.
const LIMIT: Duration = Duration::from_secs(10);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether interception is active, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Every rule in force is intercepted.
    Ready,
    /// Not, for this reason.
    NotReady(String),
}

/// The readiness of the agent, shared with the endpoint.
pub type SharedReadiness = Arc<ArcSwap<Readiness>>;

/// The endpoint. It is served until this is dropped.
pub struct Endpoint {
    listener: Arc<TcpListener>,
    task: AbortHandle,
}

impl Endpoint {
    /// The listening socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves the endpoint.
///
/// # Errors
/// The listener is of no use.
pub fn serve(
    listener: std::net::TcpListener,
    readiness: SharedReadiness,
    metrics: Arc<Metrics>,
) -> io::Result<Endpoint> {
    listener.set_nonblocking(true)?;
    let listener = Arc::new(TcpListener::from_std(listener)?);
    let accepting = listener.clone();
    let task = tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        // The longest is first.
        let mut silent: VecDeque<Silent> = VecDeque::new();
        loop {
            let Ok((stream, _)) = accepting.accept().await else {
                // Out of descriptors: those who hold them need time.
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            if places.available_permits() == 0 {
                // What has come by now is taken in.
                yield_now().await;
            }
            silent.retain(Silent::is_there);
            if places.available_permits() == 0
                && let Some(silent) = silent.pop_front()
            {
                silent.task.abort();
            }
            // It is never closed.
            let place = places.clone().acquire_owned().await;
            let (readiness, metrics) = (readiness.clone(), metrics.clone());
            let asks = Arc::<AtomicBool>::default();
            let has_asked = asks.clone();
            let task = tokio::spawn(async move {
                let _place = place;
                let service = service_fn(|request| {
                    asks.store(true, Ordering::Relaxed);
                    let response = answer(&request, &readiness.load(), &metrics);
                    async { Ok::<_, Infallible>(response) }
                });
                // A client that goes away early has nothing to be told. One that keeps its connection would go on being told by
                // an agent that another one has followed.
                let connection =
                    http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
                let _ = timeout(LIMIT, connection).await;
            });
            silent.push_back(Silent { task: task.abort_handle(), has_asked });
        }
    });
    Ok(Endpoint { listener, task: task.abort_handle() })
}

/// A connection on which nothing was asked yet.
struct Silent {
    task: AbortHandle,
    has_asked: Arc<AtomicBool>,
}

impl Silent {
    /// Whether it is one still.
    fn is_there(&self) -> bool {
        !self.has_asked.load(Ordering::Relaxed) && !self.task.is_finished()
    }
}

fn answer(request: &Request<Incoming>, readiness: &Readiness, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/readyz") => match readiness {
            Readiness::Ready => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
            Readiness::NotReady(reason) => {
                (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("not ready: {reason}\n"))
            }
        },
        (&Method::GET | &Method::HEAD, "/metrics") => match metrics.encode() {
            Ok(text) => (StatusCode::OK, OPENMETRICS, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
        },
        (_, "/healthz" | "/readyz" | "/metrics") => {
            (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /readyz, /healthz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
