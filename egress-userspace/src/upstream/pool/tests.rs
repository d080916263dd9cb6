mod crowded;
mod early;
mod lone;
mod moved;

use std::{net, num::NonZeroU32};

use tokio::{
    io::DuplexStream,
    runtime::{Builder, LocalOptions},
    task::{JoinHandle, spawn_local, yield_now},
    time::timeout,
};

use super::*;
use crate::{
    limits::Limits,
    policy::ConnectionPool,
    upstream::{
        Carrier, ConnectionInfo,
        http1::{Exclusive, Stream},
        http2::Shared,
    },
};

/// A pool, an upstream with these limits, and the other ends of the connections that were made.
struct Bench {
    pool: Rc<Pool>,
    usage: Arc<Usage>,
    made: Rc<RefCell<Vec<net::TcpStream>>>,
    served: Rc<RefCell<Vec<&'static str>>>,
}

const MOST_IDLE: usize = 4;
const HTTP1: Wanted = Wanted { max_idle: MAX_IDLE, http2: false, web_socket: false, newer_than: None };

type Got = Result<Connection, Rc<UpstreamError>>;

impl Bench {
    fn new(max_connections: u32, max_pending_requests: u32) -> Self {
        Self::with(ConnectionPool { max_connections, max_pending_requests, ..ConnectionPool::default() })
    }

    fn with(settings: ConnectionPool) -> Self {
        Self {
            pool: Rc::new(Pool::new(|_| (), MOST_IDLE)),
            usage: Arc::new(Usage::new(settings)),
            made: Rc::default(),
            served: Rc::default(),
        }
    }

    /// A request of this name that takes a connection of a key with this port, from now on.
    fn request(&self, name: &'static str, port: u16) -> JoinHandle<Got> {
        self.ask(name, port, HTTP1)
    }

    fn ask(&self, name: &'static str, port: u16, wanted: Wanted) -> JoinHandle<Got> {
        let (pool, usage, made, served) =
            (self.pool.clone(), self.usage.clone(), self.made.clone(), self.served.clone());
        spawn_local(async move {
            let got = pool.get(&key(port), wanted, Some(&usage), |_| connect(made.clone()), |_| ()).await;
            served.borrow_mut().push(name);
            got
        })
    }

    /// Has a connection of HTTP/2 that nobody waits for.
    async fn have(&self, port: u16, shared: &Shared) {
        let made = Made::Http2(shared.clone());
        self.pool.begin_ahead(&key(port), &self.usage, |_| async { Ok(made) });
        settle().await;
    }

    fn served(&self) -> Vec<&'static str> {
        self.served.borrow().clone()
    }
}

fn key(port: u16) -> Key {
    Key { netns: NetnsCookie(1), device: 0, to: To::Origin(SocketAddr::from(([192, 0, 2, 1], port))), owner: None }
}

async fn connect(made: Rc<RefCell<Vec<net::TcpStream>>>) -> Result<Made, UpstreamError> {
    let listener = net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let near = net::TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    made.borrow_mut().push(listener.accept().expect("the same").0);
    near.set_nonblocking(true).expect("a socket");
    let near = tokio::net::TcpStream::from_std(near).expect("a socket");
    let info = ConnectionInfo::new(([192, 0, 2, 1], 443).into(), "HTTP/1.1", None);
    let exclusive = Exclusive::new(Stream::Left(near), Limits::default().head, info);
    settle().await;
    Ok(Made::Http1(exclusive))
}

impl Carrier for DuplexStream {}

/// A connection of HTTP/2 to nobody.
fn shared() -> Shared {
    let (near, far) = tokio::io::duplex(64 * 1024);
    // It does not end by itself.
    std::mem::forget(far);
    let info = ConnectionInfo::new(([192, 0, 2, 1], 443).into(), "HTTP/2", None);
    Shared::start(near, Limits::default().head, Rc::default(), Box::new(|_| true), info)
}

/// Has all tasks come as far as they can.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.expect("a runtime").block_on(test);
}

#[test]
fn those_who_wait_for_a_connection_get_it_in_their_order() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let first = bench.request("first", 1).await.expect("no panic").expect("a connection");
        let mut waiting = Vec::new();
        for name in ["second", "third", "fourth"] {
            waiting.push(bench.request(name, 1));
            settle().await;
        }
        assert_eq!(bench.served(), ["first"]);
        // One that gives up while it waits loses nothing for the others.
        waiting.remove(1).abort();
        bench.pool.put(&key(1), first);
        let newcomer = bench.request("newcomer", 1);
        settle().await;
        assert_eq!(bench.served(), ["first", "second"]);
        for (request, served) in waiting.into_iter().chain([newcomer]).zip([2, 3, 4]) {
            let got = request.await.expect("no panic").expect("a connection");
            assert_eq!(bench.served().len(), served);
            bench.pool.put(&key(1), got);
            settle().await;
        }
        assert_eq!(bench.served()[2..], ["fourth", "newcomer"]);
        assert_eq!(bench.made.borrow().len(), 1);
    });
}

#[test]
fn a_key_without_a_connection_has_one_beyond_the_limit() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let first = bench.request("first", 1).await.expect("no panic").expect("a connection");
        let other = bench.request("other", 2).await.expect("no panic").expect("a connection");
        let second = bench.request("second", 2);
        settle().await;
        assert_eq!((bench.served(), bench.made.borrow().len()), (vec!["first", "other"], 2));
        // What nobody uses makes room.
        bench.pool.put(&key(1), first);
        let _second = second.await.expect("no panic").expect("a connection");
        let _third = bench.request("third", 1).await.expect("no panic").expect("a connection");
        let fourth = bench.request("fourth", 1);
        settle().await;
        // But not what was beyond the limit.
        bench.pool.put(&key(2), other);
        settle().await;
        assert_eq!((bench.pool.lacking(&key(2), 2), bench.made.borrow().len()), (1, 4));
        assert!(!fourth.is_finished());
    });
}

#[test]
fn a_connection_that_nobody_waits_for_any_more_is_for_whoever_comes_next() {
    run(async {
        for wanted in [HTTP1, Wanted::ANY] {
            let bench = Bench::new(u32::MAX, u32::MAX);
            let first = bench.ask("first", 1, wanted);
            yield_now().await;
            yield_now().await;
            assert!(bench.made.borrow().len() == 1 && !first.is_finished());
            first.abort();
            settle().await;
            settle().await;
            let second = bench.ask("second", 1, wanted).await.expect("no panic").expect("a connection");
            assert!(second.is_reused() && bench.made.borrow().len() == 1);
        }
    });
}

#[test]
fn of_connections_that_nobody_waits_for_any_more_few_are_made() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let making = Rc::new(());
        let requests: Vec<_> = (0..100)
            .map(|_| {
                let (pool, making) = (bench.pool.clone(), making.clone());
                spawn_local(async move {
                    let make = |_| {
                        let making = making.clone();
                        async move {
                            let _making = making;
                            std::future::pending().await
                        }
                    };
                    pool.get(&key(1), HTTP1, None, make, |_| ()).await.is_ok()
                })
            })
            .collect();
        settle().await;
        requests.iter().for_each(JoinHandle::abort);
        drop(requests);
        settle().await;
        let left = Rc::strong_count(&making) - 1;
        assert!((1..10).contains(&left), "{left}");
    });
}

#[test]
fn requests_that_cannot_share_connections_do_not_wait_for_each_other() {
    run(async {
        for (max_requests, max_streams) in [(1, 9), (9, 1)] {
            let bench = Bench::with(ConnectionPool {
                max_requests_per_connection: NonZeroU32::new(max_requests),
                max_concurrent_streams: NonZeroU32::new(max_streams),
                ..ConnectionPool::default()
            });
            bench.have(1, &shared()).await;
            let _first = bench.pool.ready(&key(1), Wanted::ANY).expect("a connection");
            let _others = [bench.ask("second", 1, Wanted::ANY), bench.ask("third", 1, Wanted::ANY)];
            yield_now().await;
            yield_now().await;
            assert_eq!(bench.made.borrow().len(), 2);
        }
    });
}

#[test]
fn a_connection_that_nobody_uses_is_there_though_others_are_being_made() {
    run(async {
        let bench = Bench::new(u32::MAX, 1);
        let first = bench.request("first", 1).await.expect("no panic").expect("a connection");
        let second = bench.request("second", 1);
        yield_now().await;
        yield_now().await;
        bench.pool.put(&key(1), first);
        assert!(!second.is_finished());
        bench.request("third", 1).await.expect("no panic").expect("a connection");
        assert_eq!(bench.made.borrow().len(), 2);
    });
}

#[test]
fn no_more_may_wait_than_the_settings_say() {
    run(async {
        let bench = Bench::new(1, 1);
        let _first = bench.request("first", 1).await.expect("no panic").expect("a connection");
        let second = bench.request("second", 1);
        settle().await;
        let third = bench.request("third", 1).await.expect("no panic").err().expect("no connection");
        assert!(matches!(*third, UpstreamError::Overflow { kind: Kind::Pending, limit: 1 }), "{third}");
        second.abort();
        settle().await;
        let fourth = bench.request("fourth", 1);
        settle().await;
        assert!(!fourth.is_finished(), "it may wait in the second's place");
    });
}

#[test]
fn a_connection_that_is_lost_makes_a_place() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let first = bench.request("first", 1).await.expect("no panic").expect("a connection");
        let second = bench.request("second", 1);
        settle().await;
        drop(first);
        second.await.expect("no panic").expect("a connection");
        assert_eq!(bench.made.borrow().len(), 2);
    });
}

#[test]
fn none_is_used_that_is_closed_however_many_are() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let mut got = Vec::new();
        for _ in 0..300 {
            got.push(bench.request("any", 1).await.expect("no panic").expect("a connection"));
        }
        for connection in got {
            bench.pool.put(&key(1), connection);
        }
        bench.made.borrow_mut().clear();
        sleep(Duration::from_millis(10)).await;
        // More than a task may look at before others have their turn.
        let fresh = bench.request("last", 1).await.expect("no panic").expect("a connection");
        assert!(!fresh.is_reused());
    });
}

#[test]
fn what_was_asked_for_before_there_was_one_is_given_up_nevertheless() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let shared = shared();
        let made = shared.clone();
        bench.pool.begin_ahead(&key(2), &bench.usage, |_| async {
            settle().await;
            settle().await;
            Ok(Made::Http2(made))
        });
        let _beyond = bench.request("beyond", 1).await.expect("no panic").expect("a connection");
        let other = bench.request("other", 1);
        settle().await;
        settle().await;
        let used = shared.stream();
        drop(shared);
        bench.pool.expire();
        assert_eq!(bench.pool.lacking(&key(2), 1), 0, "what is in use stays");
        drop(used);
        settle().await;
        assert!(!other.is_finished() && bench.pool.lacking(&key(2), 1) == 0);
        bench.pool.expire();
        assert_eq!(bench.pool.lacking(&key(2), 1), 1);
        timeout(MAX_IDLE, other).await.expect("a place").expect("no panic").expect("a connection");
    });
}

#[test]
fn connections_of_what_is_replaced_are_not_kept() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let used = bench.request("used", 1).await.expect("no panic").expect("a connection");
        let idle = bench.request("idle", 1).await.expect("no panic").expect("a connection");
        bench.pool.put(&key(1), idle);
        bench.pool.expire();
        assert_eq!(bench.pool.lacking(&key(1), 2), 1);
        bench.usage.end();
        bench.pool.expire();
        bench.pool.put(&key(1), used);
        assert_eq!(bench.pool.lacking(&key(1), 2), 2);
    });
}

#[test]
fn who_cannot_share_a_connection_waits_for_none_that_nobody_takes() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let first = bench.ask("first", 1, Wanted::ANY);
        let alone = bench.request("alone", 1);
        yield_now().await;
        first.abort();
        timeout(MAX_IDLE / 10, alone).await.expect("a place").expect("no panic").expect("a connection");
        assert_eq!(bench.made.borrow().len(), 1);
    });
}

#[test]
fn what_cannot_serve_a_request_keeps_it_from_none_beyond_the_limit() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let _other = bench.request("other", 2).await.expect("no panic").expect("a connection");
        let make = |_| async { Ok(Made::Http2(shared())) };
        let stream =
            bench.pool.get(&key(1), Wanted::ANY, Some(&bench.usage), make, |_| ()).await.expect("a connection");
        // This one needs HTTP/1.1.
        let first = timeout(MAX_IDLE / 10, bench.request("first", 1)).await.expect("a place");
        let _first = first.expect("no panic").expect("a connection");
        let second = bench.request("second", 1);
        settle().await;
        assert!(!second.is_finished(), "of those that serve there is one");
        drop(stream);
    });
}

#[test]
fn one_that_has_switched_protocols_has_a_place_like_others() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let first = bench.request("first", 1).await.expect("no panic").expect("a connection");
        let Connection::Http1(first) = first else { panic!("it is of HTTP/1.1") };
        let switched = first.switched();
        let second = bench.request("second", 1);
        settle().await;
        assert!(!second.is_finished());
        drop(switched);
        timeout(MAX_IDLE, second).await.expect("a place").expect("no panic").expect("a connection");
    });
}

#[test]
fn a_connection_that_is_used_for_long_comes_back() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let first = bench.request("first", 1).await.expect("no panic").expect("a connection");
        bench.pool.expire();
        bench.pool.put(&key(1), first);
        assert!(bench.request("second", 1).await.expect("no panic").expect("a connection").is_reused());
    });
}
