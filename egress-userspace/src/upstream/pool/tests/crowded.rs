//! Many idle connections.

use std::ops::RangeInclusive;

use super::*;

#[test]
fn where_too_many_connections_are_idle_they_go_sooner() {
    run(async {
        let bench = Bench::new(u32::MAX, u32::MAX);
        let idle = || bench.pool.count_idle();
        assert_eq!(bench.pool.spare(), MOST_IDLE / 2);
        let keep = async |ports: RangeInclusive<u16>| {
            for port in ports {
                bench.pool.add(&key(port), Offer::Http1, connect(bench.made.clone()).await.expect("a connection"));
            }
        };
        let used = |port| bench.request("used", port);
        for port in 1..=MOST_IDLE as u16 {
            drop(used(port).await.expect("no panic").expect("a connection"));
        }
        keep(1..=MOST_IDLE as u16).await;
        sleep(MAX_IDLE_CROWDED).await;
        bench.pool.expire();
        assert_eq!((idle(), bench.pool.spare()), (MOST_IDLE, 0));
        drop(used(5).await.expect("no panic").expect("a connection"));
        keep(5..=5).await;
        bench.pool.expire();
        // The young one stays. Those that nobody asks for would go again.
        assert_eq!((idle(), bench.pool.spare()), (1, 0));
    });
}
