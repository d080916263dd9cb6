//! Connections that are being made, be it that nobody waits for them.

use std::{
    future::pending,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
};

use tokio::{
    sync::oneshot::{self, error::TryRecvError},
    task,
    time::{Instant, sleep_until},
};

use super::{Key, OfKey, Pool, waiting::RELIANCE};
use crate::upstream::{
    Made, Order, UpstreamError,
    limits::{Place, Usage},
};

/// Connections that go on being made though nobody waits for them, as applications choose keys.
const LEFT_ALONE: usize = 256;

/// What comes of a connection that a task of its own makes. That goes on when this is dropped.
pub(super) struct Making {
    made: oneshot::Receiver<Result<Made, UpstreamError>>,
    /// How.
    pub(super) order: Order,
    pool: Weak<Pool>,
    key: Key,
    begun: Instant,
    /// Whether somebody else has begun it than who waits for it.
    is_others: bool,
    /// As long as nobody waits for it.
    left: Option<Left>,
}

/// Leave to make a connection that nobody waits for: of its key, and of all.
type Left = (Rc<()>, Rc<()>);

impl Making {
    /// Waits for it. None if it is others' and fails, or takes long.
    pub(super) async fn end(&mut self) -> Option<Result<Made, UpstreamError>> {
        let long = async {
            if self.is_others {
                sleep_until(self.begun + RELIANCE).await;
            } else {
                pending::<()>().await;
            }
        };
        let made = tokio::select! {
            biased;
            made = &mut self.made => made,
            () = long => return None,
        };
        // It ends without a word only if it panics, and then whoever waits for it ends in the same way.
        match made.expect("the task that makes a connection") {
            Err(error) if self.is_others => {
                left_unmade(&error);
                None
            }
            made => Some(made),
        }
    }

    /// Whether it can be relied on, as it was begun just now.
    pub(super) fn is_young(&self) -> bool {
        self.begun.elapsed() < RELIANCE
    }

    /// Whether who waits for it has begun it.
    pub(super) fn is_own(&self) -> bool {
        !self.is_others
    }

    /// The same for somebody who waits for it. What was begun for a request that was still to come is as good as its own.
    pub(super) fn awaited(mut self) -> Self {
        self.is_others = self.left.take().is_none();
        self
    }

    /// Whether nothing will come of it, as its task has ended without a word. What has come of it is lost by asking.
    pub(super) fn is_lost(&mut self) -> bool {
        matches!(self.made.try_recv(), Err(TryRecvError::Closed))
    }

    /// What has come of it. None if it has yet to end.
    pub(super) fn ended(&mut self) -> Option<Result<Made, UpstreamError>> {
        self.made.try_recv().ok()
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // It can have been made in the same instant as the last one who waited for it left.
        if let (Some(Ok(made)), Some(pool)) = (self.ended(), self.pool.upgrade()) {
            pool.add(&self.key, self.order.offer, made);
        }
    }
}

impl Pool {
    /// Begins a connection for a request that is still to come, if that would lack one, and there is a place to spare. It counts among
    /// those that nobody waits for, of which only so many are made.
    pub fn begin<F>(self: &Rc<Self>, key: &Key, usage: &Arc<Usage>, make: impl FnOnce(Order) -> F)
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        let of_key = OfKey { pool: self, key, usage };
        if of_key.with(|origin| origin.lacking(1) == 0) {
            return;
        }
        if let Some(left) = self.leave_alone(key) {
            of_key.begin(Some(left), make);
        }
    }

    /// Begins one that is to be ready whether or not a request comes, if there is a place to spare.
    pub fn begin_ahead<F>(self: &Rc<Self>, key: &Key, usage: &Arc<Usage>, make: impl FnOnce(Order) -> F)
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        OfKey { pool: self, key, usage }.begin(None, make);
    }

    /// Has a connection made, to its end even if nobody waits for it any more: else who gives up sooner than that would never have
    /// one. Of those only so many go on, as an origin that is silent would get more and more.
    pub(super) fn make<F>(
        self: &Rc<Self>,
        key: &Key,
        order: Order,
        place: Option<Place>,
        make: impl FnOnce(Order) -> F,
    ) -> Making
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        let (mut maker, made) = oneshot::channel();
        let (offer, making) = (order.offer, make(order.clone()));
        let (begun, pool) = (Instant::now(), Rc::downgrade(self));
        let awaited = Making { made, order, pool, key: key.clone(), begun, is_others: false, left: None };
        let (pool, key) = (self.clone(), key.clone());
        task::spawn_local(async move {
            let mut making = pin!(making);
            let _left;
            let made = tokio::select! {
                biased;
                made = &mut making => made,
                () = maker.closed() => {
                    _left = match pool.leave_alone(&key) {
                        left @ Some(_) => left,
                        None if pool.is_for_others(&key) => None,
                        // As where all of its key was forgotten.
                        None => return,
                    };
                    making.await
                }
            };
            match maker.send(made.map(|made| made.with(place))) {
                // Perhaps nobody has come for it yet. No other task sees it in between.
                Ok(()) => pool.take_in(&key),
                Err(Ok(made)) => pool.add(&key, offer, made),
                Err(Err(error)) => left_unmade(&error),
            }
            pool.call_one(&key);
        });
        awaited
    }

    fn take_in(&self, key: &Key) {
        if let Some(origin) = self.origins.borrow_mut().get_mut(key) {
            origin.take_in();
        }
    }

    /// Has one of those who wait for whatever comes first have another one made.
    fn call_one(&self, key: &Key) {
        if let Some(origin) = self.origins.borrow_mut().get_mut(key) {
            origin.lone.call_one();
        }
    }

    /// Whether a connection is of use to others, who wait for whatever comes first.
    fn is_for_others(&self, key: &Key) -> bool {
        self.origins.borrow().get(key).is_some_and(|origin| !origin.lone.is_empty() && origin.lone.is_short())
    }

    /// Leave to go on making a connection that nobody waits for, for as long as this is held.
    fn leave_alone(&self, key: &Key) -> Option<Left> {
        let own = self.origins.borrow().get(key)?.leave_alone()?;
        (Rc::strong_count(&self.left_alone) <= LEFT_ALONE).then(|| (own, self.left_alone.clone()))
    }
}

impl OfKey<'_> {
    /// Begins a connection that is for whoever comes, unless somebody waits.
    fn begin<F>(self, left: Option<Left>, make: impl FnOnce(Order) -> F)
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        // What others wait for may come to serve this one, too.
        if self.with(|origin| origin.is_waited_for()) {
            return;
        }
        let Some((place, offer)) = self.spare_place() else { return };
        let mut making = self.pool.make(self.key, Order::new(offer), place, make);
        making.left = left;
        self.with(|origin| origin.leave_begun(making));
    }
}

pub(super) fn left_unmade(error: &UpstreamError) {
    tracing::debug!(%error, "a connection that nobody waits for was not made");
}
