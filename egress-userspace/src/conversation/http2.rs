//! Clients that speak HTTP/2 in clear, knowing that it is understood (RFC 9113 section 3.3), as those of gRPC do.

mod stream;

use std::{cell::Cell, future::poll_fn, rc::Rc, task::Poll, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::stream::translate;
use crate::{
    drain::{Drain, GRACE},
    http1::server::{Connection, Switched},
    http2::{self, Config, Link, Reader, Requested, Role, Writer},
    limits::Beyond,
    request::Conversation,
    worker::Load,
};

/// Requests that a client may have under way on one connection. One more waits, in most clients, for as long as others take: some of gRPC
/// do not end.
const STREAMS: u32 = 1024;
/// What a client may send of one request before the origin has taken it, in bytes. There is next to no latency between it
/// and us.
const STREAM_WINDOW: u32 = 64 * 1024;
/// What may be on its way of all requests of a connection.
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;

/// How often is looked whether a client that sends no more is still there: a read would not tell.
const LOOK_FOR_RESET: Duration = Duration::from_secs(1);
/// How long a client has to take what it is told last, once its connection has taken longer than it may.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Serves a connection until it ends.
pub(super) async fn converse(
    conversation: Rc<Conversation>,
    connection: Rc<Connection>,
    load: &Load,
    mut draining: watch::Receiver<Drain>,
) {
    let windows = Config {
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        streams: STREAMS,
        heads: conversation.worker.limits.head,
        unread: Rc::default(),
        trailers: conversation.worker.connector.room_for_trailers(&conversation.accepted.from),
    };
    let mut serving = http2::Connection::new(Switched::new(connection.clone()), Role::Server, windows);
    let (last, link) = (Rc::<Cell<_>>::default(), serving.link());
    let life = Life { conversation: &conversation, connection: &connection, load, last: &last, link: &link };
    // What a request has become that has switched protocols ends with the connection, however that ends.
    let ended = Rc::new(CancellationToken::new());
    let _ends = (*ended).clone().drop_guard();
    let take = |head: Requested, reader: Reader, writer: Writer| {
        last.set(Some(Instant::now()));
        let (ended, last) = (ended.clone(), last.clone());
        match conversation
            .worker
            .one_more(load)
            .and_then(|one| conversation.worker.hold(load, link.heads()).map(|()| one))
        {
            Ok(load) => {
                let conversation = conversation.clone();
                task::spawn_local(async move {
                    stream::answer(conversation, head, (reader, writer), load, ended).await;
                    last.set(Some(Instant::now()));
                });
            }
            Err(why) => _ = task::spawn_local(stream::turn_away(&conversation, head, writer, why)),
        }
    };
    if let Err(error) = life.serve(&mut serving, &take, &mut draining).await {
        conversation.ended(&error);
    }
    drop(serving);
    // Each stream says by itself where it ends.
    connection.close_in_order();
}

/// Takes requests until the connection has ended.
async fn accept<I: AsyncRead + AsyncWrite + Unpin>(
    serving: &mut http2::Connection<I>,
    link: &Link,
    take: &impl Fn(Requested, Reader, Writer),
) -> Result<(), http2::Error> {
    poll_fn(|cx| {
        let polled = serving.poll(cx);
        while let Some((head, reader, writer)) = link.accepted() {
            take(head, reader, writer);
        }
        polled
    })
    .await
}

/// What a connection is judged by.
struct Life<'a> {
    conversation: &'a Conversation,
    connection: &'a Connection,
    load: &'a Load,
    /// When a request has come or was answered last.
    last: &'a Cell<Option<Instant>>,
    /// What the client has begun.
    link: &'a Link,
}

/// Why a connection has taken longer than it may.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outstayed {
    /// There was no request for long.
    Unused,
    /// Nothing goes on, or what was begun is not ended.
    Stalled,
    /// There is no room for what was begun.
    Beyond,
    /// Its client is gone.
    Gone,
}

impl Life<'_> {
    /// Takes requests until the connection has ended, or has to.
    async fn serve<I: AsyncRead + AsyncWrite + Unpin>(
        &self,
        serving: &mut http2::Connection<I>,
        take: &impl Fn(Requested, Reader, Writer),
        draining: &mut watch::Receiver<Drain>,
    ) -> Result<(), http2::Error> {
        let mut why = tokio::select! {
            biased;
            ended = accept(serving, self.link, take) => return ended,
            () = self.drained(draining) => None,
            why = self.outstayed() => Some(why),
        };
        if why.is_some() && !self.link.is_told() {
            // It has not even begun.
            return Ok(());
        }
        self.link.close_gracefully();
        // What is under way, and what crosses this on the wire, is served to its end.
        loop {
            if let Some(why) = why {
                if !matches!(why, Outstayed::Beyond | Outstayed::Gone)
                    && let Ok(ended) = timeout(LAST_WORD, accept(serving, self.link, take)).await
                {
                    return ended;
                }
                if why != Outstayed::Unused || !self.is_used() {
                    return Ok(());
                }
            }
            why = tokio::select! {
                biased;
                ended = accept(serving, self.link, take) => return ended,
                why = self.outstayed() => Some(why),
            };
        }
    }

    /// Waits until the connection is to take no more requests.
    async fn drained(&self, draining: &mut watch::Receiver<Drain>) {
        // The agent is there for as long as its connections.
        let _ = draining.wait_for(|drain| *drain != Drain::Off).await;
        if self.last.get().is_none() {
            sleep(GRACE).await;
        }
    }

    /// Waits until the connection has taken longer than it may.
    async fn outstayed(&self) -> Outstayed {
        tokio::select! {
            why = self.idle() => why,
            () = self.late() => {
                self.conversation.note_late();
                Outstayed::Stalled
            }
            why = self.beyond() => {
                self.conversation.note_beyond(why);
                Outstayed::Beyond
            }
            () = self.gone() => Outstayed::Gone,
        }
    }

    /// Waits until a client that sends no more does not wait for its responses either. To be polled whenever something has come.
    async fn gone(&self) {
        poll_fn(|_| if self.link.is_at_end() { Poll::Ready(()) } else { Poll::Pending }).await;
        while !self.connection.is_closed() {
            sleep(LOOK_FOR_RESET).await;
        }
    }

    /// Waits until there is no room for what has come of a head. To be polled whenever something has come.
    async fn beyond(&self) -> Beyond {
        let limits = &self.conversation.worker.limits;
        poll_fn(|_| match self.load.hold(self.link.heads(), limits) {
            Err(why) if self.link.begun() > 0 => Poll::Ready(why),
            _ => Poll::Pending,
        })
        .await
    }

    /// Waits until the client takes too long to end what it has begun.
    async fn late(&self) {
        let limit = self.conversation.worker.limits.head_time;
        loop {
            let now = Instant::now();
            // What is begun meanwhile has at least as long.
            let end = self.link.owed_since().unwrap_or(now) + limit;
            if end <= now {
                return;
            }
            sleep_until(end).await;
        }
    }

    /// Waits until there was no request for long, or nothing at all has come or gone while there was one.
    async fn idle(&self) -> Outstayed {
        let limit = self.conversation.worker.limits.idle;
        let mut end = Instant::now() + limit;
        let mut moved = None;
        loop {
            sleep_until(end).await;
            let now = Instant::now();
            // Those that are under way have it too.
            let since = if self.is_used() {
                let before = moved.replace(self.connection.moved());
                if before == moved {
                    return Outstayed::Stalled;
                }
                Some(now)
            } else {
                self.last.get()
            };
            end = since.map_or(end, |since| since + limit);
            if end <= now {
                return Outstayed::Unused;
            }
        }
    }

    /// Whether requests are under way.
    fn is_used(&self) -> bool {
        Rc::strong_count(&self.conversation.client) > 1
    }
}
