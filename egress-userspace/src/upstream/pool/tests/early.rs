//! Connections that are begun before their requests are there.

use tokio::sync::Notify;

use super::{waiting::RELIANCE, *};

impl Bench {
    /// Begins a connection for a request that is still to come.
    fn begin(&self, port: u16) {
        self.pool.begin(&key(port), &self.usage, |_| connect(self.made.clone()));
    }
}

#[test]
fn a_request_waits_for_the_connection_that_was_begun_for_it() {
    run(async {
        for protocol_is_known in [false, true] {
            let bench = Bench::new(u32::MAX, u32::MAX);
            if protocol_is_known {
                // It is HTTP/1.1, so each request has one of its own made.
                drop(bench.ask("before", 1, Wanted::ANY).await.expect("no panic").expect("a connection"));
                bench.made.borrow_mut().clear();
            }
            bench.begin(1);
            bench.begin(1);
            let first = bench.ask("first", 1, Wanted::ANY).await.expect("no panic").expect("a connection");
            assert_eq!(bench.made.borrow().len(), 1, "known: {protocol_is_known}");
            // That one is in use.
            bench.begin(1);
            let _second = bench.ask("second", 1, Wanted::ANY).await.expect("no panic").expect("a connection");
            assert_eq!(bench.made.borrow().len(), 2, "known: {protocol_is_known}");
            drop(first);
        }
    });
}

#[test]
fn what_was_begun_for_nobody_is_for_whoever_comes() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        bench.begin(1);
        settle().await;
        settle().await;
        // It is there, so no other is begun.
        bench.begin(1);
        let request = bench.ask("request", 1, Wanted::ANY).await.expect("no panic").expect("a connection");
        assert!(request.is_reused() && bench.made.borrow().len() == 1);
    });
}

#[test]
fn those_that_are_to_be_ready_are_for_requests_that_come_sooner() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        for lacking in [3, 2, 1] {
            assert_eq!(bench.pool.lacking(&key(1), 3), lacking);
            bench.pool.begin_ahead(&key(1), &bench.usage, |_| connect(bench.made.clone()));
        }
        let spare = bench.pool.spare();
        let _request = bench.ask("request", 1, Wanted::ANY).await.expect("no panic").expect("a connection");
        settle().await;
        settle().await;
        let (made, idle) = (bench.made.borrow().len(), bench.pool.count_idle());
        assert_eq!((spare, made, idle, bench.pool.lacking(&key(1), 3)), (0, 3, 2, 1));
    });
}

#[test]
fn none_is_made_ready_while_a_request_waits() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let begin = || bench.pool.begin_ahead(&key(1), &bench.usage, |_| connect(bench.made.clone()));
        begin();
        let request = bench.ask("request", 1, Wanted::ANY);
        yield_now().await;
        yield_now().await;
        begin();
        let _request = request.await.expect("no panic").expect("a connection");
        settle().await;
        assert_eq!(bench.made.borrow().len(), 1);
    });
}

#[test]
fn one_that_was_begun_before_the_origin_has_asked_for_http1_changes_nothing_of_that() {
    run(async {
        for is_waited_for in [false, true] {
            let bench = Bench::new(u32::MAX, u32::MAX);
            let shared = shared();
            let made = Made::Http2(shared.clone());
            let make = |_| async {
                settle().await;
                Ok(made)
            };
            bench.pool.begin(&key(1), &bench.usage, make);
            let waiter = is_waited_for.then(|| bench.ask("waiter", 1, Wanted::ANY));
            yield_now().await;
            bench.pool.require_http1(&key(1));
            settle().await;
            settle().await;
            if let Some(waiter) = waiter {
                assert!(!waiter.await.expect("no panic").expect("a connection").is_http2());
            }
            drop(shared);
            let offered = Rc::new(Cell::new(None));
            let make = |order: Order| {
                offered.set(Some(order.offer));
                connect(bench.made.clone())
            };
            bench.pool.get(&key(1), Wanted::ANY, None, make, |_| ()).await.expect("a connection");
            assert_eq!(offered.get(), Some(Offer::Http1), "waited for: {is_waited_for}");
        }
    });
}

#[test]
fn none_is_begun_where_others_wait_or_there_is_no_place() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let first = bench.request("first", 1);
        yield_now().await;
        bench.begin(1);
        let first = first.await.expect("no panic").expect("a connection");
        bench.begin(1);
        bench.begin(2);
        settle().await;
        assert_eq!(bench.made.borrow().len(), 1);
        drop(first);
        bench.begin(1);
        settle().await;
        assert_eq!(bench.made.borrow().len(), 2);
    });
}

#[test]
fn as_few_are_begun_for_nobody_as_are_made_though_nobody_waits() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let begun = Rc::new(());
        for port in 0..1000 {
            let begun = begun.clone();
            bench.pool.begin(&key(port), &bench.usage, |_| async move {
                let _begun = begun;
                std::future::pending().await
            });
        }
        settle().await;
        assert_eq!(Rc::strong_count(&begun) - 1, 256);
        // Those of a network namespace that is gone are given up.
        bench.pool.forget(NetnsCookie(1));
        settle().await;
        assert_eq!(Rc::strong_count(&begun), 1);
    });
}

#[test]
fn one_that_fails_is_nobodys_failure() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        bench.pool.begin(&key(1), &bench.usage, |_| async { Err(UpstreamError::NoAddress) });
        settle().await;
        bench.ask("request", 1, Wanted::ANY).await.expect("no panic").expect("a connection");
        assert_eq!(bench.made.borrow().len(), 1);
    });
}

/// One fails, and one does not end.
#[test]
fn a_request_has_its_own_made_where_what_others_have_begun_does_not_come() {
    run(async {
        for (protocol_is_known, fails) in [(false, false), (false, true), (true, false), (true, true)] {
            let bench = Bench::new(u32::MAX, u32::MAX);
            if protocol_is_known {
                drop(bench.ask("before", 1, Wanted::ANY).await.expect("no panic").expect("a connection"));
            }
            let fail = Rc::new(Notify::new());
            let failing = fail.clone();
            bench.pool.begin_ahead(&key(1), &bench.usage, |_| async move {
                failing.notified().await;
                Err(UpstreamError::NoAddress)
            });
            let request = bench.ask("request", 1, Wanted::ANY);
            settle().await;
            assert!(!request.is_finished(), "it can come");
            if fails {
                fail.notify_one();
            }
            let got = timeout(MAX_IDLE / 10, request).await.expect("one of its own").expect("no panic");
            assert!(got.is_ok(), "known: {protocol_is_known}, fails: {fails}: {:?}", got.err());
        }
    });
}

/// It waits for its place then.
#[test]
fn who_waits_for_none_that_is_being_made_has_nobody_to_blame() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        bench.pool.begin_ahead(&key(1), &bench.usage, |_| std::future::pending());
        let blames = Cell::new(false);
        let make = |_| connect(bench.made.clone());
        let (key, note) = (key(1), |blame: Option<&Blame>| blames.set(blame.is_some()));
        let mut get = pin!(bench.pool.get(&key, Wanted::ANY, Some(&bench.usage), make, note));
        assert!(timeout(RELIANCE / 2, &mut get).await.is_err() && blames.get());
        assert!(timeout(RELIANCE, get).await.is_err() && !blames.get());
    });
}

#[test]
fn a_connection_that_comes_as_its_request_leaves_is_for_whoever_comes_next() {
    run(async {
        for wanted in [HTTP1, Wanted::ANY] {
            let bench = Bench::new(u32::MAX, u32::MAX);
            let leaving = Rc::new(RefCell::new(None::<JoinHandle<bool>>));
            let (pool, made, who) = (bench.pool.clone(), bench.made.clone(), leaving.clone());
            let make = move |_| {
                let (made, who) = (made.clone(), who.clone());
                async move {
                    let connection = connect(made).await;
                    // It is made, and nobody has been told yet.
                    who.borrow().as_ref().inspect(|request| request.abort());
                    connection
                }
            };
            let first = spawn_local(async move { pool.get(&key(1), wanted, None, make, |_| ()).await.is_ok() });
            leaving.replace(Some(first));
            settle().await;
            settle().await;
            assert!(leaving.borrow().as_ref().is_some_and(JoinHandle::is_finished));
            let second = bench.ask("second", 1, wanted).await.expect("no panic").expect("a connection");
            assert!(second.is_reused() && bench.made.borrow().len() == 1);
        }
    });
}

#[test]
fn a_connection_that_waited_for_its_first_request_can_have_been_closed() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        bench.have(1, &shared()).await;
        let found = bench.pool.ready(&key(1), Wanted::ANY).expect("a connection");
        assert!(found.is_reused() && found.is_first_of_http2());
        let next = bench.pool.ready(&key(1), Wanted::ANY);
        assert!(next.is_none(), "the origin has not said yet how many it takes");
    });
}
