//! Connections to where a host is no more.

use std::net::IpAddr;

use arc_swap::ArcSwap;

use super::*;
use crate::resolve::{Addresses, Known};

const OLD: IpAddr = IpAddr::V4(net::Ipv4Addr::new(192, 0, 2, 1));
const NEW: IpAddr = IpAddr::V4(net::Ipv4Addr::new(192, 0, 2, 2));

fn bench() -> (Bench, Addresses) {
    let name = Addresses::new(ArcSwap::from_pointee(Known::always(OLD)));
    let other = Addresses::new(ArcSwap::from_pointee(Known::always(NEW)));
    let mut bench = Bench::new(u32::MAX, u32::MAX);
    bench.usage = Arc::new(Usage::default().leading_to(vec![other, name.clone()]));
    (bench, name)
}

#[test]
fn connections_to_where_a_host_is_no_more_are_not_kept() {
    run(async {
        let (bench, name) = bench();
        let used = bench.request("used", 1).await.expect("no panic").expect("a connection");
        let idle = bench.request("idle", 1).await.expect("no panic").expect("a connection");
        bench.pool.put(&key(1), idle);
        bench.pool.expire();
        assert_eq!(bench.pool.lacking(&key(1), 1), 0);
        name.store(Arc::new(Known::always(NEW)));
        bench.pool.expire();
        assert_eq!(bench.pool.lacking(&key(1), 1), 1, "nobody used it");
        bench.pool.put(&key(1), used);
        assert_eq!(bench.pool.lacking(&key(1), 1), 1, "it was in use");
    });
}

#[test]
fn one_that_many_share_ends_with_the_last_of_them() {
    run(async {
        let (bench, name) = bench();
        let shared = shared();
        bench.have(1, &shared).await;
        let stream = shared.stream();
        bench.pool.expire();
        assert_eq!(bench.pool.lacking(&key(1), 1), 0);
        name.store(Arc::new(Known::always(NEW)));
        bench.pool.expire();
        assert_eq!(bench.pool.lacking(&key(1), 1), 1);
        assert!(!shared.is_closed(), "it has a request");
        drop(stream);
    });
}
