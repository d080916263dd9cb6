//! Requests that wait for a connection of their own.

use tokio::sync::Notify;

use super::{waiting::AT_ONCE, *};

impl Bench {
    /// A connection of HTTP/1.1 that is in use, after which the origin is known to pick that.
    async fn used(&self) -> Connection {
        self.ask("used", 1, Wanted { http2: true, ..HTTP1 }).await.expect("no panic").expect("a connection")
    }

    /// A request for which a connection is made that comes to nothing until `end`, which is then an error.
    fn slow(&self, name: &'static str, end: &Rc<Notify>, begun: &Rc<Cell<usize>>) -> JoinHandle<Got> {
        let (pool, usage, served) = (self.pool.clone(), self.usage.clone(), self.served.clone());
        let (end, begun) = (end.clone(), begun.clone());
        spawn_local(async move {
            let make = |_| {
                begun.set(begun.get() + 1);
                let end = end.clone();
                async move {
                    end.notified().await;
                    Err(UpstreamError::NoAddress)
                }
            };
            let got = pool.get(&key(1), HTTP1, Some(&usage), make, |_| ()).await;
            served.borrow_mut().push(name);
            got
        })
    }
}

#[test]
fn who_waits_has_what_is_free_first_in_its_turn() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let first = bench.used().await;
        let (end, begun) = (Rc::default(), Rc::default());
        let mut waiting = Vec::new();
        for name in ["one", "two", "three"] {
            waiting.push(bench.slow(name, &end, &begun));
            settle().await;
        }
        // One that has gone is not given anything.
        waiting.remove(1).abort();
        settle().await;
        bench.pool.put(&key(1), first);
        let newcomer = bench.slow("newcomer", &end, &begun);
        settle().await;
        assert_eq!(bench.served(), ["used", "one"]);
        for (request, served) in waiting.into_iter().chain([newcomer]).zip(2..) {
            let got = request.await.expect("no panic").expect("a connection");
            assert_eq!(bench.served().len(), served);
            bench.pool.put(&key(1), got);
            settle().await;
        }
        assert_eq!((bench.pool.count_idle(), bench.made.borrow().len()), (1, 1));
    });
}

#[test]
fn so_many_connections_are_made_at_the_same_time() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let mut connection = bench.used().await;
        let (end, begun) = (Rc::default(), Rc::default());
        let requests: Vec<_> = (0..2 * AT_ONCE).map(|_| bench.slow("served", &end, &begun)).collect();
        settle().await;
        for request in requests {
            bench.pool.put(&key(1), connection);
            connection = request.await.expect("no panic").expect("a connection");
        }
        assert_eq!(begun.get(), AT_ONCE);
        // What was begun for those is for others now, who have one of their own begun once it has failed.
        let others: Vec<_> = (0..AT_ONCE).map(|_| bench.slow("waits", &end, &begun)).collect();
        settle().await;
        assert_eq!(begun.get(), AT_ONCE);
        end.notify_waiters();
        settle().await;
        assert_eq!(begun.get(), 2 * AT_ONCE);
        // Another one is begun once there are fewer.
        let last = bench.slow("last", &end, &begun);
        settle().await;
        assert_eq!(begun.get(), 2 * AT_ONCE);
        end.notify_waiters();
        settle().await;
        assert_eq!(begun.get(), 1 + 2 * AT_ONCE);
        assert!(others.iter().all(JoinHandle::is_finished) && !last.is_finished());
        end.notify_waiters();
        let error = last.await.expect("no panic").err().expect("there is none");
        assert!(matches!(&*error, UpstreamError::NoAddress), "{error}");
    });
}

#[test]
fn what_was_made_for_somebody_who_has_another_is_for_who_waits() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let first = bench.used().await;
        let (end, begun) = (Rc::default(), Rc::default());
        // Its own is made at once, but it is given another in the same instant.
        let quick = bench.request("quick", 1);
        let slow = bench.slow("slow", &end, &begun);
        yield_now().await;
        bench.pool.put(&key(1), first);
        let (quick, slow) = (quick.await.expect("no panic"), slow.await.expect("no panic"));
        assert!(quick.is_ok() && slow.is_ok(), "{:?} {:?}", quick.err(), slow.err());
    });
}

#[test]
fn a_connection_given_to_somebody_who_leaves_is_not_lost() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let first = bench.used().await;
        let (end, begun) = (Rc::default(), Rc::default());
        let waits = bench.slow("waits", &end, &begun);
        settle().await;
        bench.pool.put(&key(1), first);
        // It has not run since.
        waits.abort();
        settle().await;
        assert_eq!(bench.pool.count_idle(), 1);
    });
}

#[test]
fn one_that_is_made_in_the_instant_in_which_another_is_given_is_not_lost() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let first = Rc::new(Cell::new(Some(bench.used().await)));
        let make = |_| {
            let (pool, first, made) = (bench.pool.clone(), first.clone(), bench.made.clone());
            async move {
                let connection = connect(made).await;
                pool.put(&key(1), first.take().expect("it is asked for once"));
                connection
            }
        };
        let given = bench.pool.get(&key(1), HTTP1, None, make, |_| ()).await.expect("a connection");
        assert!(given.is_reused());
        assert_eq!((bench.pool.count_idle(), bench.made.borrow().len()), (1, 2));
    });
}
