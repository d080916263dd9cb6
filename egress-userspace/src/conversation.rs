//! A client's connection from the first request to the last.

mod http2;

use std::{
    cell::Cell,
    future::{Future, pending, poll_fn},
    mem,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep, timeout},
};

pub use self::http2::translate;
use crate::{
    body::{BodyError, Incoming, ResponseBody},
    drain::{Drain, GRACE},
    head::{RequestHead, Response, ResponseHead},
    http1::{
        Error,
        server::{Asked, ClientStream, Connection, Switched, Waited},
    },
    limits::{Beyond, Limits},
    memory::boxed,
    request::{Accepted, Conversation, ProxyError, Served},
    worker::{Load, Worker},
};

/// How long a connection can go unwatched whose first request is served: nobody knows for so long that its client has reset it, and most
/// are served sooner. A shorter timer would wake a worker that has nothing to do, only to be set.
const UNWATCHED: Duration = Duration::from_secs(1);
/// For how long what a client sends is read after the last response, and for how long without a byte: what is left unread when the
/// connection is closed makes the kernel reset it, and a client that is still sending would never see the response. Many look for it
/// only when they have sent everything.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_SILENCE: Duration = Duration::from_secs(5);
/// The same when draining, or after what is no request, in all.
const LINGER_BRIEFLY: Duration = Duration::from_secs(1);
/// How long a connection that is one too many has to send its request.
const TURN_AWAY: Duration = Duration::from_secs(1);

/// Serves a connection, of which `begun` has been read, until it ends or its network namespace is gone. Until then it counts as
/// load.
pub fn hold(
    worker: Rc<Worker>,
    stream: ClientStream,
    begun: BytesMut,
    accepted: Accepted,
    load: Load,
    draining: watch::Receiver<Drain>,
) -> impl Future<Output = ()> {
    let gone = accepted.gone.clone();
    let connection = Rc::new(Connection::new(stream, begun, worker.limits.head));
    let conversation = Rc::new(Conversation::new(worker, accepted));
    async move {
        tokio::select! {
            biased;
            () = converse(&conversation, &connection, &load, draining) => {}
            () = gone.cancelled() => {}
        }
    }
}

/// Answers the first request of a connection that is one too many, and ends it.
pub async fn turn_away(worker: Rc<Worker>, stream: ClientStream, accepted: Accepted, why: Beyond) {
    let connection = Connection::new(stream, BytesMut::new(), worker.limits.head);
    let conversation = Conversation::new(worker, accepted);
    let request = timeout(TURN_AWAY, poll_fn(|cx| connection.poll_request(cx))).await;
    let Ok(Ok(Waited::Request(head, asked))) = request else { return };
    let Response { head, body } = conversation.turn_away(&head, ProxyError::too_many(why));
    if connection.respond(head, pin!(body), asked, true, pin!(pending()), || ()).await.is_ok() {
        end(&connection, connection.is_end(), sleep(TURN_AWAY)).await;
    }
}

async fn converse(
    conversation: &Rc<Conversation>,
    connection: &Rc<Connection>,
    load: &Load,
    draining: watch::Receiver<Drain>,
) {
    let first = Cell::new(true);
    let mut drained = pin!(drained(draining.clone(), connection, &first));
    let mut patience = Patience::new(&conversation.worker.limits);
    let hold = |heads| load.hold(heads, &conversation.worker.limits);
    // Of what there is no room for nothing is kept.
    let let_go = || {
        connection.forget();
        let _ = hold(0);
    };
    loop {
        let begins = || {
            // No client has more than one connection made by that.
            if first.get() {
                conversation.prepare();
            }
        };
        let next = tokio::select! {
            biased;
            next = patience.wait(connection, begins, hold) => next,
            () = drained.as_mut() => Ok(Waited::Closed),
        };
        first.set(false);
        // While a connection is idle it takes no more room than it needs.
        let more = match next {
            Ok(Waited::Closed) => return connection.close_in_order(),
            Ok(Waited::Http2) => {
                return Box::pin(http2::converse(conversation.clone(), connection.clone(), load, draining)).await;
            }
            Ok(Waited::Request(head, asked)) => match conversation.worker.hold(load, head.size()) {
                Ok(()) => boxed(|| serve(conversation, connection, load, &draining, &mut patience, head, asked)).await,
                Err(why) => {
                    let response = conversation.turn_away(&head, ProxyError::too_many(why));
                    drop(head);
                    let_go();
                    Box::pin(end_with(response, conversation, connection, &mut patience, asked)).await
                }
            },
            Err(failed) => {
                if let Failed::Beyond(_) = failed {
                    let_go();
                }
                Box::pin(refuse(conversation, connection, &mut patience, failed)).await
            }
        };
        if !more {
            return;
        }
    }
}

/// Serves one request. Gives whether another can follow.
async fn serve(
    conversation: &Conversation,
    connection: &Rc<Connection>,
    load: &Load,
    draining: &watch::Receiver<Drain>,
    patience: &mut Patience<'_>,
    head: Box<RequestHead>,
    asked: Asked,
) -> bool {
    let served = {
        let stalled = pin!(patience.stalled(connection));
        let serving = pin!(conversation.serve(*head, Incoming::Client(connection.clone()), load, stalled));
        connection.unless_reset(serving).await
    };
    let Served { response, tunnel, ends_by_close } = match served {
        Ok(served) => served,
        Err(error) => {
            conversation.ended(&error);
            return false;
        }
    };
    let Response { head, body } = response;
    // Where an answer of ours comes before all of the request, what follows on the connection is not waited for. Nor does anybody
    // know whether it is content, where the client was not told to go on (RFC 9110 section 10.1.1).
    let is_cut = !connection.is_end() && (!body.is_of_origin() || connection.waits());
    let last = *draining.borrow() != Drain::Off || is_cut;
    let responded = {
        // It ends with its response: what comes from the client after that is of no request, or of the next.
        let body = pin!(body);
        let let_go = || _ = conversation.worker.hold(load, 0);
        respond(connection, head, body, asked, last, patience, let_go).await
    };
    match responded {
        Ok(more) => {
            if let Some(tunnel) = tunnel {
                if tunnel.run(Switched::new(connection.clone())).await {
                    connection.close_in_order();
                } else {
                    connection.taken().await;
                }
                return false;
            }
            if !more {
                // Closed with something unread, it would be reset, and the response be lost to a client that has yet to read it.
                end(connection, connection.is_end() && !connection.has_unread(), hurried(draining)).await;
            }
            more
        }
        Err(error) => {
            conversation.ended(&error);
            // A response that broke off must not look complete, and for a client on whose connection nothing moves nothing is kept.
            match error {
                BodyError::Stalled(_) => {}
                _ if ends_by_close => connection.taken().await,
                _ => connection.close_in_order(),
            }
            false
        }
    }
}

/// Answers what is no request, after which nobody knows what else comes.
async fn refuse(
    conversation: &Conversation,
    connection: &Connection,
    patience: &mut Patience<'_>,
    failed: Failed,
) -> bool {
    let response = match failed {
        Failed::Late => conversation.late(),
        Failed::Beyond(why) => conversation.refuse_beyond(why),
        Failed::Connection(Error::Fault(fault)) => conversation.refuse(fault),
        Failed::Connection(error) => {
            conversation.ended(&error);
            return false;
        }
    };
    end_with(response, conversation, connection, patience, Asked::UNKNOWN).await
}

/// Sends a response after which the connection ends, whatever else comes.
async fn end_with(
    response: Response<ResponseBody>,
    conversation: &Conversation,
    connection: &Connection,
    patience: &mut Patience<'_>,
    asked: Asked,
) -> bool {
    let Response { head, body } = response;
    match respond(connection, head, pin!(body), asked, true, patience, || ()).await {
        // Nobody is owed for long what comes after no request.
        Ok(_) => end(connection, false, sleep(LINGER_BRIEFLY)).await,
        Err(error) => conversation.ended(&error),
    }
    false
}

/// Sends a response for as long as the client takes it. Tells when its head is `gone`, and gives whether another request can follow.
async fn respond(
    connection: &Connection,
    head: ResponseHead,
    body: Pin<&mut ResponseBody>,
    asked: Asked,
    last: bool,
    patience: &mut Patience<'_>,
    gone: impl Fn(),
) -> Result<bool, BodyError> {
    let stalled = pin!(patience.stalled(connection));
    let responding = pin!(connection.respond(head, body, asked, last, stalled, gone));
    connection.unless_reset(responding).await.unwrap_or_else(|error| Err(Error::Io(error).into()))
}

/// Ends a connection in order; one whose client may still be sending once it has had the time to read, or when it is `enough`.
async fn end(connection: &Connection, heard: bool, enough: impl Future<Output = ()>) {
    if !heard {
        let lingering = timeout(LINGER, async {
            connection.shut_down()?;
            connection.discard(LINGER_SILENCE).await
        });
        tokio::select! {
            _ = lingering => {}
            () = enough => {}
        }
    }
    connection.close_in_order();
}

/// Waits until nobody lingers any more, as the agent drains.
async fn hurried(draining: &watch::Receiver<Drain>) {
    // The agent is there for as long as its connections.
    let _ = draining.clone().wait_for(|drain| *drain != Drain::Off).await;
    sleep(LINGER_BRIEFLY).await;
}

/// Waits until an idle connection has to end.
async fn drained(mut draining: watch::Receiver<Drain>, connection: &Connection, first: &Cell<bool>) {
    // The agent is there for as long as its connections.
    let _ = draining.wait_for(|drain| *drain == Drain::Now).await;
    if first.get() {
        Box::pin(sleep(GRACE)).await;
    }
    // A request of which some has come is the last one, and has the time that its head may take.
    poll_fn(|_| if connection.begun() > 0 { Poll::Pending } else { Poll::Ready(()) }).await;
}

/// Why no request comes of what a client has begun.
enum Failed {
    /// It is none, or the connection has failed.
    Connection(Error),
    /// It takes too long.
    Late,
    /// There is no room for its head.
    Beyond(Beyond),
}

/// How long is waited for a client. One timer does for all its requests: it is looked at only when it has run out.
struct Patience<'a> {
    timer: Pin<Box<Sleep>>,
    limits: &'a Limits,
    /// Whether the connection is to be watched once the timer has run out, if nobody has waited for the client before.
    watches: bool,
}

impl<'a> Patience<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { timer: Box::pin(sleep(UNWATCHED)), limits, watches: true }
    }

    /// Waits for the next request. Tells when it `begins`, if not all of its head comes with that, and has what has come held.
    async fn wait(
        &mut self,
        connection: &Connection,
        mut begins: impl FnMut(),
        hold: impl Fn(usize) -> Result<(), Beyond>,
    ) -> Result<Waited, Failed> {
        let (since, limits) = (Instant::now(), self.limits);
        if self.timer.deadline() > since + limits.idle {
            self.timer.as_mut().reset(since + limits.idle);
        }
        let mut begun = None;
        poll_fn(|cx| {
            if let Poll::Ready(next) = connection.poll_request(cx) {
                return Poll::Ready(next.map_err(Failed::Connection));
            }
            let length = connection.begun();
            if let Err(why) = hold(length) {
                return Poll::Ready(Err(Failed::Beyond(why)));
            }
            if begun.is_none() && length > 0 {
                begun = Some(Instant::now());
                begins();
                self.timer.as_mut().reset(Instant::now() + limits.head_time);
            }
            let end = begun.map_or(since + limits.idle, |begun| begun + limits.head_time);
            if mem::take(&mut self.watches) {
                // As a rule it is by now.
                connection.watch();
                self.timer.as_mut().reset(end);
            }
            while self.timer.as_mut().poll(cx).is_ready() {
                if Instant::now() >= end {
                    return Poll::Ready(begun.map_or(Ok(Waited::Closed), |_| Err(Failed::Late)));
                }
                self.timer.as_mut().reset(end);
            }
            Poll::Pending
        })
        .await
    }

    /// Waits until nothing has come or gone for as long as a connection may be idle, which is what it gives. That is looked at only
    /// when the timer has run out, and known when it has done so again.
    async fn stalled(&mut self, connection: &Connection) -> Duration {
        let idle = self.limits.idle;
        let mut moved = None;
        loop {
            self.timer.as_mut().await;
            if mem::take(&mut self.watches) {
                connection.watch();
            } else {
                let before = moved.replace(connection.moved());
                if before == moved {
                    return idle;
                }
            }
            self.timer.as_mut().reset(Instant::now() + idle);
        }
    }
}
