//! Requests that wait for a connection: for one that they share, which the first of them has made, or for one that is theirs alone. Of
//! the latter each has what is free first, in the order in which they came, though another one is being made for it: an origin can be
//! slow to accept connections, and quick on those that it has.

use std::{collections::BTreeMap, future::pending, rc::Rc, time::Duration};

use tokio::{sync::oneshot, time::timeout};

use super::{OfKey, Queue, Turn, Wanted, making::Making, origin::Found};
use crate::upstream::{Blame, Connection, Made, Offer, Order, UpstreamError, http1::Exclusive, http2};

/// Connections that are made at the same time for requests of their own. More would come no sooner from an origin that is busy, and
/// those that there are become free meanwhile.
pub(super) const AT_ONCE: usize = 64;
/// How long a request relies on those that are made for others: they can be of no use, or take long.
pub(super) const RELIANCE: Duration = Duration::from_secs(1);

/// Those who wait for a connection of their own at one origin.
#[derive(Default)]
pub(super) struct Waiting {
    /// By their number.
    queue: BTreeMap<u64, Waiter>,
    next: u64,
    /// Shared with the connections that are being made for them, be it that who had one made has got another since.
    making: Rc<()>,
}

struct Waiter {
    hand: oneshot::Sender<Exclusive>,
    /// Whether a connection is being made for it.
    has_own: bool,
}

/// A place among them, which is given up when this is dropped.
struct Ticket<'a> {
    of_key: OfKey<'a>,
    number: u64,
    given: oneshot::Receiver<Exclusive>,
}

impl Waiting {
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether another connection is to be made for one that waits.
    pub(super) fn is_short(&self) -> bool {
        Rc::strong_count(&self.making) - 1 < AT_ONCE
    }

    /// Counts a connection as being made for as long as this is held.
    pub(super) fn count(&self) -> Rc<()> {
        self.making.clone()
    }

    /// Gives a connection to the first of them. Gives it back if there is none.
    pub(super) fn hand(&mut self, mut connection: Exclusive) -> Option<Exclusive> {
        while let Some((_, waiter)) = self.queue.pop_first() {
            connection = waiter.hand.send(connection).err()?;
        }
        Some(connection)
    }

    /// Has the last one for whom none is being made look again, as another can be made. It is the last afterwards, too.
    pub(super) fn call_one(&mut self) {
        if self.is_short() {
            let lacking = self.queue.iter().rev().find_map(|(number, waiter)| (!waiter.has_own).then_some(*number));
            lacking.and_then(|number| self.queue.remove(&number));
        }
    }

    /// Has all of them look again.
    pub(super) fn call_all(&mut self) {
        self.queue.clear();
    }

    fn enter(&mut self, has_own: bool) -> (u64, oneshot::Receiver<Exclusive>) {
        let (hand, given) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.queue.insert(number, Waiter { hand, has_own });
        (number, given)
    }
}

impl OfKey<'_> {
    /// Waits, in its turn, for a connection to be there or to be made. None if it is time to look again: who does `rely` on those that
    /// are being made for others has waited for long, or one of them has failed, or the origin has asked for HTTP/1.1 meanwhile.
    pub(super) async fn wait<F>(
        self,
        wanted: Wanted,
        rely: bool,
        make: impl Fn(Order) -> F,
        blame: impl Fn(Option<&Blame>),
    ) -> Result<Option<Connection>, Rc<UpstreamError>>
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        blame(None);
        let queue = match self.with(|origin| origin.enter(wanted)) {
            Ok(found) => return Ok(Some(found)),
            Err(queue) => queue,
        };
        let mut turn = queue.lock().await;
        loop {
            match self.with(|origin| origin.find(wanted)) {
                Found::Connection(found) => return Ok(Some(found)),
                Found::Soon(room) => _ = timeout(http2::SILENCE, room.notified()).await,
                Found::Nothing => break,
            }
        }
        let Some(offer) = self.with(|origin| origin.alone(wanted)) else {
            return self.shared(wanted, &queue, &mut turn, make, blame).await;
        };
        let takes_any = self.with(|origin| origin.takes_any(wanted));
        let mut making = match self.take_or_make(wanted, takes_any, rely, offer, &mut turn, make).await {
            Ok(making) => making,
            Err(found) => return Ok(Some(found)),
        };
        blame(making.as_ref().map(|making| &making.order.blame));
        let mut ticket = takes_any.then(|| Ticket::take(self, making.as_ref().is_some_and(Making::is_own)));
        // Who is next need not wait for this one.
        drop(turn);
        drop(queue);
        let is_made = making.is_some();
        let given = async {
            match &mut ticket {
                Some(ticket) if is_made => ticket.given().await,
                Some(ticket) => timeout(RELIANCE, ticket.given()).await.unwrap_or_default(),
                None => pending().await,
            }
        };
        let made = async {
            match &mut making {
                Some(making) => making.end().await,
                None => pending().await,
            }
        };
        let given = tokio::select! {
            biased;
            given = given => given,
            made = made => match made {
                Some(made) => return made.map(|made| self.with(|origin| origin.made(offer, made))).map_err(Rc::new),
                None => None,
            },
        };
        if let Some(making) = making {
            self.with(|origin| origin.leave_begun(making));
        }
        Ok(given.map(Connection::Http1))
    }

    /// One that is being made for whoever comes, if this does `rely` on such, or for this alone. None if it `takes_any`, and is to wait
    /// for what others have.
    async fn take_or_make<F>(
        self,
        wanted: Wanted,
        takes_any: bool,
        rely: bool,
        offer: Offer,
        turn: &mut Turn,
        make: impl Fn(Order) -> F,
    ) -> Result<Option<Making>, Connection>
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        if rely {
            let begun = self.with(|origin| origin.take_begun(offer));
            if begun.is_some() || takes_any && !self.with(|origin| origin.lone.is_short()) {
                return Ok(begun);
            }
        }
        if self.usage.places().is_some_and(|places| places.available_permits() == 0) {
            // Nobody would take it meanwhile, and it may have the only place.
            turn.making = None;
        }
        let place = self.place(wanted).await?;
        let counted = takes_any.then(|| self.with(|origin| origin.lone.count()));
        Ok(Some(self.pool.make(self.key, Order::new(offer), place, |order| {
            let made = make(order);
            async move {
                let made = made.await;
                drop(counted);
                made
            }
        })))
    }

    /// A connection that others may share, which the first of those who wait has made for all of them. None as in `wait`.
    async fn shared<F>(
        self,
        wanted: Wanted,
        queue: &Rc<Queue>,
        turn: &mut Turn,
        make: impl Fn(Order) -> F,
        blame: impl Fn(Option<&Blame>),
    ) -> Result<Option<Connection>, Rc<UpstreamError>>
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        if let Some(failure) = &turn.failure {
            return Err(failure.clone());
        }
        let mut begun = turn.making.take().or_else(|| self.with(|origin| origin.take_begun(Offer::Both)));
        let made = loop {
            let making = match begun.take() {
                Some(making) => making,
                None => match self.place(wanted).await {
                    Ok(place) => self.pool.make(self.key, Order::new(Offer::Both), place, &make),
                    Err(found) => return Ok(Some(found)),
                },
            };
            let making = turn.making.insert(making);
            blame(Some(&making.order.blame));
            let room = self.with(|origin| origin.room());
            let made = loop {
                tokio::select! {
                    biased;
                    made = making.end() => break made,
                    // Another one may be of use before it. Whoever is next waits on for it, if there is still a need.
                    () = room.notified() => {
                        if let Found::Connection(found) = self.with(|origin| origin.find(wanted)) {
                            return Ok(Some(found));
                        }
                    }
                }
            };
            let making = turn.making.take();
            if let Some(made) = made {
                break made;
            }
            blame(None);
            making.into_iter().for_each(|making| self.with(|origin| origin.leave_begun(making)));
        };
        made.map(|made| self.with(|origin| origin.made(Offer::Both, made))).map_err(|error| {
            // Nobody else is to wait for what has failed.
            self.with(|origin| origin.leave(queue));
            turn.failure.insert(Rc::new(error)).clone()
        })
    }
}

impl<'a> Ticket<'a> {
    /// The last place, of somebody who may have a connection made meanwhile.
    fn take(of_key: OfKey<'a>, has_own: bool) -> Self {
        let (number, given) = of_key.with(|origin| origin.lone.enter(has_own));
        Self { of_key, number, given }
    }

    /// Waits for a connection. None if it is time to look again.
    async fn given(&mut self) -> Option<Exclusive> {
        (&mut self.given).await.ok()
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut origins = self.of_key.pool.origins.borrow_mut();
        let Some(origin) = origins.get_mut(self.of_key.key) else { return };
        origin.lone.queue.remove(&self.number);
        // It can have been given in the same instant.
        if let Ok(connection) = self.given.try_recv() {
            origin.keep(connection);
        }
    }
}
