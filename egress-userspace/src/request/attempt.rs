//! Sending one request, and again where that is safe.

use std::{
    future::poll_fn,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, StatusCode, Uri, Version, uri::PathAndQuery};

use super::{headers, host::RequestHost, web_socket};
use crate::{
    body::{Content, Incoming},
    head::{RequestHead, Response},
    http2::Asked,
    upstream::{
        Connection, Fate, NotAnswered,
        pool::{self, Wanted},
    },
};

/// How often a request is repeated that no origin has looked at.
const REPEATS: u32 = 3;
/// How much of a request's body is read before an error is answered.
const DISCARD_LIMIT: usize = 1024 * 1024;

/// A request on its way, and what is needed to send it a second time where that is safe: it was not sent at all or not
/// processed, or it is idempotent (RFC 9110 section 9.2.2) and has no content.
pub(super) struct Attempt<'a> {
    /// As HTTP/1.1 has it, but for the version, which is the client's.
    head: &'a RequestHead,
    host: &'a RequestHost,
    content: &'a Rc<Content>,
    /// Whether the client takes trailers, which HTTP/2 has a field for.
    trailers: bool,
    repeatable: bool,
    http2: bool,
    needs_http1: bool,
    newer_than: Option<Instant>,
    repeats: u32,
}

impl<'a> Attempt<'a> {
    /// The request with this head, as the origin should see it.
    pub(super) fn new(
        head: &'a RequestHead,
        host: &'a RequestHost,
        content: &'a Rc<Content>,
        http2: bool,
        trailers: bool,
    ) -> Self {
        let repeatable = content.is_empty() && head.method.is_idempotent();
        Self { head, host, content, trailers, repeatable, http2, needs_http1: false, newer_than: None, repeats: 0 }
    }

    /// What the connection must be like.
    pub(super) fn wanted(&self, idle_timeout: Option<Duration>) -> Wanted {
        let usual = if self.repeatable { pool::MAX_IDLE } else { pool::MAX_IDLE_UNREPEATABLE };
        // Who says that the origin waits for longer takes the risk.
        let max_idle = idle_timeout.map_or(usual, |limit| if self.repeatable { limit } else { limit.min(usual) });
        let web_socket = self.web_socket().is_some();
        Wanted { max_idle, http2: self.http2 && !self.needs_http1, web_socket, newer_than: self.newer_than }
    }

    /// The key, if it asks for a WebSocket alone, which HTTP/2 can say as well, unless the origin does not take it so.
    fn web_socket(&self) -> Option<&[u8]> {
        if self.http2 || self.needs_http1 || !self.repeatable { None } else { web_socket::key(self.head) }
    }

    /// Whether trailers can go to the client: it says so, or speaks HTTP/2, which has them in any case.
    pub(super) fn may_have_trailers(&self) -> bool {
        self.trailers || self.head.version == Version::HTTP_2
    }

    /// Whether the origin has said that it takes the request over HTTP/1.1 alone.
    pub(super) fn needs_http1(&self) -> bool {
        self.needs_http1
    }

    /// Sends the request, as `connection` takes it.
    ///
    /// # Errors
    /// There is no response to it.
    pub(super) async fn send(&self, connection: &mut Connection) -> Result<Response<Incoming>, NotAnswered> {
        match connection {
            Connection::Http1(exclusive) => {
                // That the origin has closed it may be seen when content was read already, but nothing was sent.
                if exclusive.was_idle && !self.content.is_empty() {
                    self.content.keep();
                }
                exclusive.send(self.head, self.content.body(), self.trailers).await
            }
            Connection::Http2(stream) => {
                let key = self.web_socket();
                let asked = Asked {
                    method: &self.head.method,
                    scheme: if stream.connection().info.tls.is_some() { "https" } else { "http" },
                    authority: self.host.authority().as_str(),
                    path: self.head.uri().path_and_query().map_or("/", PathAndQuery::as_str),
                    protocol: key.map(|_| web_socket::PROTOCOL),
                    fields: &self.head.fields,
                    left_out: key.map(|_| &web_socket::LEFT_OUT),
                    trailers: self.trailers,
                };
                self.content.keep();
                let mut answered = stream.send(&asked, self.content.body()).await;
                if let Ok(response) = &mut answered
                    && let Some(key) = key.filter(|_| stream.has_switched())
                {
                    web_socket::agree(&mut response.head, key);
                }
                answered
            }
        }
    }

    /// Makes it ready to be sent again, over HTTP/1.1 too if it `may_be_http1`.
    ///
    /// # Errors
    /// That is not safe.
    pub(super) fn again(
        &mut self,
        failure: NotAnswered,
        connection: &Connection,
        may_be_http1: bool,
    ) -> Result<(), NotAnswered> {
        let fate = match failure.fate() {
            Fate::NeedsHttp1 { gone: true } if !may_be_http1 => Fate::Unprocessed { gone: true },
            fate => fate,
        };
        let is_possible = self.repeats < REPEATS && self.content.is_repeatable();
        let may = match fate {
            Fate::NeedsHttp1 { .. } => may_be_http1 && is_possible,
            // One that was fresh and takes nothing is no better the next time.
            Fate::Unprocessed { .. } => is_possible && (!failure.unsent || connection.is_reused()),
            // Once, and on a younger connection: one that was idle may have been closed by the origin just now.
            Fate::Lost => self.repeatable && connection.is_reused() && self.newer_than.is_none(),
            Fate::Failed => false,
        };
        if !may {
            return Err(failure);
        }
        if let (Fate::Unprocessed { gone: false }, Connection::Http2(stream)) = (fate, connection) {
            stream.refused();
        }
        self.repeats += 1;
        self.needs_http1 |= matches!(fate, Fate::NeedsHttp1 { .. });
        if matches!(fate, Fate::Unprocessed { gone: true } | Fate::Lost) {
            self.newer_than = Some(connection.made());
        }
        Ok(())
    }

    /// Whether a response says that the origin was about to close an idle connection, rather than what it thinks of a request that
    /// it has met there (RFC 9110 section 15.5.9). Makes it ready to be sent again then, where that is safe.
    pub(super) fn crosses(&mut self, response: &Response<Incoming>, connection: &Connection) -> bool {
        let head = &response.head;
        head.status == StatusCode::REQUEST_TIMEOUT
            && !connection.is_http2()
            && !headers::keeps_alive(head.version, &head.fields)
            && self.again(NotAnswered::closed(), connection, false).is_ok()
    }

    /// Whether the request may be sent once more though it may have been processed, or for sure was not.
    pub(super) fn may_go_again(&self, processed: bool) -> bool {
        if processed { self.repeatable } else { self.content.is_repeatable() }
    }
}

/// Reads what has come of a body that goes nowhere, so that another request can follow on its connection if that is all. A client that
/// is still sending is not waited for: it gets its answer, and its connection ends with that.
pub(super) async fn discard(content: &Content) {
    if content.is_waiting() {
        return;
    }
    let mut left = DISCARD_LIMIT;
    poll_fn(|cx| {
        while left > 0
            && let Poll::Ready(Some(Ok(frame))) = content.poll_read(cx)
        {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(())
    })
    .await;
}

/// Makes the head what the origin should see: what the application sent, less what concerns our connection alone.
pub fn prepare(head: &mut RequestHead, host: &RequestHost) {
    headers::remove_hop_by_hop(&mut head.fields);
    if head.uri().authority().is_some() {
        // To an origin goes the origin form, with the target's authority as Host (RFC 9112 sections 3.2.1 and 3.2.2).
        if head.method == Method::OPTIONS && has_no_path(head) {
            // Of the server as a whole (section 3.2.4).
            head.set_uri(Uri::from(PathAndQuery::from_static("*")));
        } else {
            head.leave_authority();
        }
        headers::replace_host(&mut head.fields, host.authority());
    }
}

/// Whether an absolute target ends with its authority.
fn has_no_path(head: &RequestHead) -> bool {
    // As a URI it has its slash.
    head.uri().path() == "/" && head.uri().query().is_none() && !head.target().ends_with(b"/")
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };
    use tokio_util::either::Either;

    use super::*;
    use crate::{
        http1::{
            Limits,
            server::{self, Waited},
        },
        upstream::{ConnectionInfo, http1::Exclusive},
    };

    const LIMITS: Limits = Limits { head: 4096, fields: 100 };

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let connecting = TcpStream::connect(listener.local_addr().expect("an address"));
        let (near, accepted) = tokio::join!(connecting, listener.accept());
        (near.expect("a connection"), accepted.expect("the same").0)
    }

    fn pooled(stream: TcpStream) -> Connection {
        let info = ConnectionInfo::new(([192, 0, 2, 7], 443).into(), "HTTP/1.1", None);
        let mut exclusive = Exclusive::new(Either::Left(stream), LIMITS, info);
        exclusive.was_idle = true;
        Connection::Http1(exclusive)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_was_not_sent_at_all_is_sent_again_with_its_content() {
        const REQUEST: &str = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\nhello";
        let (mut client, accepted) = pair().await;
        client.write_all(REQUEST.as_bytes()).await.expect("somebody reads");
        let accepted = server::ClientStream::new(accepted.into_std().expect("a connection"));
        let accepted = Rc::new(server::Connection::new(accepted, BytesMut::new(), LIMITS));
        let Ok(Waited::Request(head, _)) = poll_fn(|cx| accepted.poll_request(cx)).await else { panic!("no request") };
        let host = RequestHost::of(&head).expect("a host");
        let content = Content::new(Incoming::Client(accepted));
        let mut attempt = Attempt::new(&head, &host, &content, false, false);

        let (near, far) = pair().await;
        far.set_zero_linger().expect("a connection");
        drop(far);
        let mut closed = pooled(near);
        let Err(failure) = attempt.send(&mut closed).await else { panic!("nobody is there") };
        assert!(failure.unsent && content.bytes() == 5);
        assert!(attempt.again(failure, &closed, true).is_ok());

        let (near, mut far) = pair().await;
        let mut received = [0; REQUEST.len()];
        let mut open = pooled(near);
        tokio::select! {
            _ = attempt.send(&mut open) => panic!("nobody answers"),
            read = far.read_exact(&mut received) => assert!(read.is_ok(), "{read:?}"),
        }
        assert_eq!(received, REQUEST.as_bytes());
    }
}
