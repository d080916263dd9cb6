use std::net;

use tokio::{
    runtime::{Builder, LocalOptions},
    task::{JoinHandle, spawn_local, yield_now},
};

use super::*;
use crate::{
    limits::Limits,
    policy::ConnectionPool,
    upstream::{
        ConnectionInfo,
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

type Got = Result<Connection, Rc<UpstreamError>>;

impl Bench {
    fn new(max_connections: u32, max_pending_requests: u32) -> Self {
        let settings = ConnectionPool { max_connections, max_pending_requests, ..ConnectionPool::default() };
        Self {
            pool: Rc::new(Pool::new(|_| ())),
            usage: Arc::new(Usage::new(settings)),
            made: Rc::default(),
            served: Rc::default(),
        }
    }

    /// A request of this name that takes a connection of a key with this port, from now on.
    fn request(&self, name: &'static str, port: u16) -> JoinHandle<Got> {
        let (pool, usage, made, served) =
            (self.pool.clone(), self.usage.clone(), self.made.clone(), self.served.clone());
        spawn_local(async move {
            let wanted = Wanted { max_idle: MAX_IDLE, http2: false, web_socket: false, newer_than: None };
            let got = pool.get(&key(port), wanted, Some(&usage), |_| connect(made.clone())).await;
            served.borrow_mut().push(name);
            got
        })
    }

    fn served(&self) -> Vec<&'static str> {
        self.served.borrow().clone()
    }
}

fn key(port: u16) -> Key {
    Key { netns: NetnsCookie(1), device: 0, to: To::Origin(SocketAddr::from(([192, 0, 2, 1], port))) }
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

/// A connection of HTTP/2 to nobody.
fn shared() -> Shared {
    let (near, far) = tokio::io::duplex(64 * 1024);
    // It does not end by itself.
    std::mem::forget(far);
    let info = ConnectionInfo::new(([192, 0, 2, 1], 443).into(), "HTTP/2", None);
    Shared::start(near, Limits::default().head, Rc::default(), info)
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
fn a_pool_without_a_connection_gets_one_of_those_that_are_busy() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let first = bench.request("first", 1).await.expect("no panic").expect("a connection");
        let other = bench.request("other", 2);
        settle().await;
        let second = bench.request("second", 1);
        settle().await;
        bench.pool.put(&key(1), first);
        let other = other.await.expect("no panic").expect("a connection");
        assert_eq!((bench.served(), bench.made.borrow().len()), (vec!["first", "other"], 2));
        bench.pool.put(&key(2), other);
        // Now there is one that nobody uses.
        while !second.is_finished() {
            bench.pool.expire();
            sleep(Duration::from_millis(10)).await;
        }
        second.await.expect("no panic").expect("a connection");
        assert_eq!(bench.made.borrow().len(), 3);
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
        let (place, offer) = bench.pool.place_for(&key(2), &bench.usage).expect("a place");
        let other = bench.request("other", 1);
        settle().await;
        let shared = shared();
        shared.hold(place);
        bench.pool.add(&key(2), &bench.usage, offer, Made::Http2(shared.clone()));
        let used = shared.stream();
        drop(shared);
        bench.pool.expire();
        settle().await;
        assert!(!other.is_finished(), "what is under way is served");
        drop(used);
        timeout(MAX_IDLE, other).await.expect("a place").expect("no panic").expect("a connection");
    });
}

#[test]
fn a_connection_that_waited_for_its_first_request_can_have_been_closed() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        bench.pool.add(&key(1), &bench.usage, Offer::Both, Made::Http2(shared()));
        let found = bench.pool.ready(&key(1), Wanted::ANY).expect("a connection");
        assert!(found.is_reused() && found.is_first_of_http2());
        let next = bench.pool.ready(&key(1), Wanted::ANY);
        assert!(next.is_none(), "the origin has not said yet how many it takes");
    });
}

#[test]
fn who_cannot_share_a_connection_waits_for_none_that_nobody_goes_on_making() {
    run(async {
        let bench = Bench::new(1, u32::MAX);
        let (pool, usage) = (bench.pool.clone(), bench.usage.clone());
        let first = spawn_local(async move {
            pool.get(&key(1), Wanted::ANY, Some(&usage), |_| std::future::pending()).await.is_ok()
        });
        settle().await;
        let alone = bench.request("alone", 1);
        settle().await;
        first.abort();
        timeout(MAX_IDLE / 10, alone).await.expect("a place").expect("no panic").expect("a connection");
    });
}

#[test]
fn one_that_has_switched_protocols_is_not_waited_for() {
    run(async {
        let bench = Bench::new(2, u32::MAX);
        let first = bench.request("first", 1).await.expect("no panic").expect("a connection");
        let Connection::Http1(first) = first else { panic!("it is of HTTP/1.1") };
        let _switched = first.switched();
        let other = bench.request("other", 2).await.expect("no panic").expect("a connection");
        let (second, next) = (bench.request("second", 1), bench.request("next", 2));
        settle().await;
        bench.pool.put(&key(2), other);
        let _second = timeout(MAX_IDLE, second).await.expect("a place").expect("no panic").expect("a connection");
        assert!(!next.is_finished());
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
