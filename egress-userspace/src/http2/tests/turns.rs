//! Who may send content, and when.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{stream::Turn, *};
use crate::body::{Body, BodyError, Frame};

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    /// How often it was, since this was asked last.
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// What one does that was called.
type Act = fn(&mut Core, usize);

/// Those whose turn it is next, in their order.
fn next(core: &mut Core) -> Vec<usize> {
    let order: Vec<_> = core.waiting.iter().map(|id| key(core, *id)).collect();
    core.wake_waiting();
    order.into_iter().filter(|key| core.streams[*key].turn == Turn::Called).collect()
}

#[test]
fn those_who_send_do_so_in_turn() {
    let mut client = core(Role::Client);
    feed(&mut client, &frame(kind::WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0")).expect("it is in order");
    feed(&mut client, &frame(kind::SETTINGS, 0, 0, b"\0\x04\x3f\0\0\0")).expect("it is in order");
    let keys: Vec<_> = (0..20).map(|_| ask(&mut client, &Fields::default(), false)).collect();
    said(&mut client);
    let data = Bytes::from(vec![b'x'; 1000 * MAX_SIZE]);
    let mut left: HashMap<_, _> = keys.iter().map(|key| (*key, data.clone())).collect();
    let (cx, mut sent) = (Context::from_waker(Waker::noop()), HashMap::new());
    let mut called = keys;
    for _ in 0..1000 {
        // Each sends as often as it may.
        for key in &called {
            while client.poll_room(*key, &cx).is_ready() {
                client.send_data(*key, left.get_mut(key).expect("its data"), false).expect("it is open");
            }
        }
        for (kind, id, _) in said(&mut client) {
            *sent.entry(id).or_insert(0) += u32::from(kind == kind::DATA);
        }
        called = next(&mut client);
    }
    let (least, most) = (sent.values().min(), sent.values().max());
    assert!(sent.len() == 20 && least > Some(&150) && most < Some(&250), "{sent:?}");
}

/// A client whose 20 streams wait for their turn, and what wakes those that have them.
fn waiting() -> (Core, Vec<usize>, Arc<Woken>) {
    let mut client = core(Role::Client);
    feed(&mut client, &frame(kind::WINDOW_UPDATE, 0, 0, b"\x3f\0\0\0")).expect("it is in order");
    let mut keys: Vec<_> = (0..21).map(|_| ask(&mut client, &Fields::default(), false)).collect();
    said(&mut client);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let cx = Context::from_waker(&waker);
    let first = keys.remove(0);
    while client.poll_room(first, &cx).is_ready() {
        client.send_data(first, &mut Bytes::from(vec![b'x'; MAX_SIZE]), false).expect("it is open");
    }
    for key in &keys {
        assert!(client.poll_room(*key, &cx).is_pending());
    }
    (client, keys, woken)
}

#[test]
fn no_more_are_called_than_find_room() {
    let (mut client, keys, woken) = waiting();
    assert!(next(&mut client).is_empty() && woken.take() == 0, "there is no room");
    said(&mut client);
    assert_eq!((next(&mut client), woken.take()), (keys[..4].to_vec(), 4));
    let cx = Context::from_waker(Waker::noop());
    for key in &keys[..4] {
        assert!(client.poll_room(*key, &cx).is_ready());
        client.send_data(*key, &mut Bytes::from(vec![b'x'; MAX_SIZE]), false).expect("it is open");
    }
    assert!(next(&mut client).is_empty(), "there is no room");
    said(&mut client);
    // Two frames, the second of which is short.
    client.send_window = MAX_SIZE as i64 + 1;
    assert_eq!((next(&mut client), woken.take()), (keys[4..6].to_vec(), 2));
}

#[test]
fn who_is_called_and_sends_nothing_holds_up_nobody() {
    let nothing: [(&str, Act); 4] = [
        ("it does not come round to it", |_, _| {}),
        ("it was given up", |core, key| core.release(key)),
        ("it has ended", |core, key| core.send_data(key, &mut Bytes::new(), true).expect("it is open")),
        ("its window was shut", |core, key| {
            core.streams[key].credit = -i64::from(core.peer.initial_window);
            assert!(core.poll_room(key, &Context::from_waker(Waker::noop())).is_pending());
        }),
    ];
    for (why, act) in nothing {
        let (mut client, keys, _) = waiting();
        let driver = Arc::new(Woken::default());
        client.drive_by(&Context::from_waker(&driver.clone().into()));
        said(&mut client);
        let mut called = Vec::new();
        loop {
            let now = next(&mut client);
            now.iter().for_each(|key| act(&mut client, *key));
            said(&mut client);
            called.extend(now);
            if driver.take() == 0 || called.len() == keys.len() {
                break;
            }
        }
        assert_eq!(called, keys, "{why}");
        // Nobody is woken for nothing.
        client.wake_waiting();
        said(&mut client);
        driver.take();
        client.wake_waiting();
        assert_eq!(driver.take(), 0, "{why}");
    }
}

#[test]
fn who_is_called_and_finds_no_room_is_the_next_one() {
    let (mut client, keys, _) = waiting();
    said(&mut client);
    assert_eq!(next(&mut client), keys[..4]);
    client.out.push(vec![b'x'; 64 * 1024].into());
    assert!(client.poll_room(keys[0], &Context::from_waker(Waker::noop())).is_pending());
    written(&mut client);
    assert_eq!(next(&mut client)[0], keys[0]);
}

/// Each would be for all streams.
#[test]
fn who_waits_for_a_window_looks_once_for_all_that_come_together() {
    let mut client = core(Role::Client);
    let own = ask(&mut client, &Fields::default(), false);
    let windows = |windows: &[u8]| -> Vec<_> {
        windows.iter().flat_map(|window| frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, *window])).collect()
    };
    feed(&mut client, &windows(&[0])).expect("it is in order");
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let cx = Context::from_waker(&waker);
    for (together, times) in [(&[100, 0][..], 0), (&[100, 200, 50], 1)] {
        assert!(client.poll_room(own, &cx).is_pending());
        feed(&mut client, &windows(together)).expect("it is in order");
        assert_eq!(woken.take(), times, "{together:?}");
    }
    assert!(client.poll_room(own, &cx).is_ready());
}

#[tokio::test]
async fn all_that_has_come_is_taken_up_in_one_turn() {
    let (mut peer, own) = tokio::io::duplex(10_000);
    let mut serving = Connection::new(own, Role::Server, config());
    let asked: Vec<_> = (0..STREAMS).flat_map(|number| head(1 + 2 * number, GET, true)).collect();
    let begin = [PREFACE, &frame(kind::SETTINGS, 0, 0, b"")[..], &asked].concat();
    peer.write_all(&begin).await.expect("it is read");
    let woken = Arc::new(Woken::default());
    assert!(serving.poll(&mut Context::from_waker(&woken.clone().into())).is_pending());
    let taken: Vec<_> = std::iter::from_fn(|| serving.link().accepted()).collect();
    assert_eq!((taken.len(), woken.take()), (STREAMS as usize, 0));
}

/// A response that ends with these.
struct Trailers(Option<Fields>);

impl Body for Trailers {
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        Poll::Ready(self.0.take().map(|trailers| Ok(Frame::Trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }
}

/// Once they are to be written their stream has ended, and counts no more.
#[tokio::test]
async fn trailers_of_who_takes_nothing_do_not_pile_up() {
    let (mut peer, own) = tokio::io::duplex(1000);
    let mut serving = Connection::new(own, Role::Server, config());
    let asked: Vec<_> = (0..STREAMS).flat_map(|number| head(1 + 2 * number, GET, true)).collect();
    let begin = [PREFACE, &frame(kind::SETTINGS, 0, 0, b"")[..], &asked].concat();
    peer.write_all(&begin).await.expect("it is read");
    let (mut sending, woken) = (Vec::new(), Arc::new(Woken::default()));
    let long = "x".repeat(52_000);
    for _ in 0..STREAMS {
        let Ok(Some((_, _, writer))) = accept(&mut serving).await else { panic!("no request") };
        writer.respond(&ResponseHead::from(StatusCode::OK), false).expect("it is open");
        sending.push(Sending::new(writer, Trailers(Some(Fields::of(&[("x-long", &long)])))));
    }
    let link = serving.link();
    let waker = woken.clone().into();
    let mut cx = Context::from_waker(&waker);
    let mut poll = || sending.iter_mut().map(|sending| usize::from(sending.poll(&mut cx).is_ready())).sum::<usize>();
    let ended = poll();
    let unwritten = link.0.borrow().out.len();
    assert!(ended < STREAMS as usize && unwritten < 4 * 52_000, "{ended} have ended, {unwritten} bytes");
    assert!(unwritten > 128 * 1024 && !link.0.borrow().is_full(), "it may ask on: {unwritten} bytes");
    assert_eq!((poll(), woken.take()), (ended, 0));
    let mut taken = vec![0; unwritten];
    let (read, _) = tokio::join!(peer.read_exact(&mut taken), async {
        while !link.0.borrow().out.is_empty() {
            tokio::task::yield_now().await;
            assert!(serving.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
    });
    read.expect("it is written");
    assert!(woken.take() > 0 && poll() > ended);
}
