//! HTTP/1.1 connections, each for one exchange at a time.

use std::{rc::Rc, time::Instant};

use hyper::{client::conn::http1, rt};
use tokio::task;

use super::{ConnectionInfo, NotAnswered, UpstreamError, limits::Place};
use crate::body::RequestBody;

/// A connection that one request uses at a time.
pub struct Exclusive {
    sender: http1::SendRequest<RequestBody>,
    /// Facts for the log.
    pub info: Rc<ConnectionInfo>,
    /// When it was made.
    pub made: Instant,
    /// How many requests it has served.
    pub served: u32,
    /// Its place, if there may be only so many; dropped after what closes it.
    pub place: Option<Place>,
}

impl Exclusive {
    /// Starts HTTP/1.1 on a connection. A task of its own drives it until it ends.
    ///
    /// # Errors
    /// The connection breaks at once.
    pub async fn start<I>(io: I, info: ConnectionInfo) -> Result<Self, UpstreamError>
    where
        I: rt::Read + rt::Write + Send + Unpin + 'static,
    {
        let address = info.address;
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .handshake::<_, RequestBody>(io)
            .await
            .map_err(|source| UpstreamError::of_exchange(&info, source))?;
        task::spawn_local(async move {
            // The exchange that it concerns sees the same error.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%address, %error, "upstream connection ended");
            }
        });
        Ok(Self { sender, info: Rc::new(info), made: Instant::now(), served: 0, place: None })
    }

    /// The same, after an exchange.
    #[must_use]
    pub fn again(mut self) -> Self {
        self.served += 1;
        self
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Whether it has finished its last exchange.
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Sends a request.
    ///
    /// # Errors
    /// There is no response to it. It comes back if it was not sent.
    pub async fn send(
        &mut self,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<hyper::body::Incoming>, NotAnswered> {
        self.sender.try_send_request(request).await.map_err(|failure| NotAnswered::of(failure, |body| body))
    }
}
