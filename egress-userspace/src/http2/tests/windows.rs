//! How much may come, and what is kept of it.

use super::*;

/// Reads all that has come on a stream, and says how much it was.
fn read(core: &mut Core, key: usize) -> usize {
    let mut count = 0;
    while let Some(piece) = core.streams[key].queue.pop() {
        count += piece.len();
        core.read(key, piece.len());
    }
    count
}

#[test]
fn readers_who_stand_still_take_nothing_from_others() {
    let mut server = core(Role::Server);
    let upload = |id| [head(id, POST, false), data(id, &[b'x'; MAX_SIZE], false).repeat(4)].concat();
    for id in [1, 3, 5, 7, 9] {
        feed(&mut server, &upload(id)).expect("there is room");
    }
    feed(&mut server, &head(11, POST, false)).expect("there is room");
    let (mut count, own) = (0, key(&server, 11));
    for _ in 0..100 {
        feed(&mut server, &data(11, &[b'x'; MAX_SIZE], false)).expect("there is room for one who reads");
        count += read(&mut server, own);
    }
    assert_eq!(count, 100 * MAX_SIZE);
    // The others have had what they may.
    feed(&mut server, &data(1, b"x", false)).expect("the connection goes on");
    let reset = [(kind::RST_STREAM, 1, u32::from(Reason::FLOW_CONTROL_ERROR).to_be_bytes().to_vec())];
    assert!(said(&mut server).ends_with(&reset));
}

#[test]
fn what_nobody_will_read_is_not_counted_any_more() {
    let mut server = core(Role::Server);
    let all = server.config.unread.clone();
    for id in [1, 3, 5] {
        feed(&mut server, &[head(id, POST, false), data(id, &[b'x'; MAX_SIZE], false)].concat())
            .expect("there is room");
    }
    let keys = [1, 3].map(|id| key(&server, id));
    assert_eq!((all.get(), read(&mut server, keys[0]), all.get()), (3 * MAX_SIZE, MAX_SIZE, 2 * MAX_SIZE));
    keys.into_iter().for_each(|key| server.release(key));
    assert_eq!((server.unread.count(), all.get()), ((MAX_SIZE, MAX_SIZE), MAX_SIZE));
    drop(server);
    assert_eq!(all.get(), 0);
}

#[test]
fn a_window_that_shrinks_is_not_shut() {
    let mut client = client();
    let own = key(&client, 1);
    feed(&mut client, &[head(1, OK, false), data(1, &[b'x'; 10_000], false).repeat(2)].concat())
        .expect("there is room");
    read(&mut client, own);
    assert!(said(&mut client).is_empty(), "there is room enough");
    client.set_initial_window(16 * 1024);
    feed(&mut client, &frame(kind::SETTINGS, flag::ACK, 0, b"")).expect("it was asked for");
    let more = (kind::WINDOW_UPDATE, 1, 20_000_u32.to_be_bytes().to_vec());
    assert_eq!(said(&mut client)[1..], [more]);
    feed(&mut client, &data(1, &[b'x'; MAX_SIZE], false)).expect("there is room");
    assert!(client.streams[own].error.is_none());
}

#[test]
fn short_pieces_that_wait_do_not_keep_what_was_read_with_them() {
    let mut queue = stream::Queue::default();
    let read = Bytes::from(vec![b'x'; 64 * 1024]);
    for _ in 0..1000 {
        queue.push(read.slice(..10), WINDOW);
    }
    let pieces: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
    assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [10, 9990]);
    for _ in 0..10 {
        queue.push(read.slice(..MAX_SIZE), WINDOW);
    }
    assert_eq!(std::iter::from_fn(|| queue.pop()).map(|piece| piece.len()).sum::<usize>(), 10 * MAX_SIZE);
    assert_eq!(queue.len(), 0);
}

#[test]
fn of_the_windows_that_come_together_the_last_one_counts() {
    let mut client = client();
    let own = key(&client, 3);
    let before = client.window_of(own);
    // The largest one is too much for a stream that has more already.
    let more = frame(kind::WINDOW_UPDATE, 0, 3, &1000_u32.to_be_bytes());
    let windows = frame(kind::SETTINGS, 0, 0, b"\0\x04\x7f\xff\xff\xff\0\x04\0\0\0\0\0\x04\0\x01\0\0");
    let others =
        [&b"\0\x04\x7f\xff\xff\xff"[..], b"\0\x04\0\x01\0\x01"].map(|window| frame(kind::SETTINGS, 0, 0, window));
    feed(&mut client, &[more, windows].concat()).expect("it is in order");
    assert_eq!(client.window_of(own), before + 1000 + 1);
    feed(&mut client, &others.concat()).expect("it is in order");
    assert_eq!(client.window_of(own), before + 1000 + 2);
    // What is too much for one stream ends the connection (RFC 9113 section 6.9.2).
    let ended = feed(&mut client, &others[0]);
    assert!(matches!(ended, Err(Error::GoAway { reason: Reason::FLOW_CONTROL_ERROR, by: By::Us })));
    // Not one of them can be more than there is.
    let mut client = self::client();
    let windows = frame(kind::SETTINGS, 0, 0, b"\0\x04\x80\0\0\0\0\x04\0\x01\0\0");
    assert!(feed(&mut client, &windows).is_err());
}

#[test]
fn a_window_that_grows_before_it_was_known_to_have_shrunk_has_not() {
    let mut client = client();
    let own = key(&client, 1);
    feed(&mut client, &head(1, OK, false)).expect("it is in order");
    client.set_initial_window(16 * 1024);
    client.set_initial_window(WINDOW);
    let acknowledged = frame(kind::SETTINGS, flag::ACK, 0, b"");
    let window = data(1, &[b'x'; MAX_SIZE], false).repeat(4);
    feed(&mut client, &[&acknowledged[..], &window, &acknowledged].concat()).expect("there is room");
    assert!(client.streams[own].error.is_none() && client.streams[own].queue.len() == WINDOW as usize);
}

#[test]
fn no_window_is_given_back_for_what_has_not_come() {
    let mut server = core(Role::Server);
    server.config.connection_window = WINDOW;
    server.receive_window = WINDOW.into();
    // The second frame ends with padding.
    let payload = [&[100], &[b'x'; MAX_SIZE - 101][..], &[0; 100]].concat();
    let padded = frame(kind::DATA, flag::PADDED, 1, &payload);
    let bytes = [head(1, POST, false), data(1, &[b'x'; MAX_SIZE], false), padded].concat();
    let (first, last) = bytes.split_at(bytes.len() - 50);
    feed(&mut server, first).expect("there is room");
    let own = key(&server, 1);
    assert_eq!(read(&mut server, own), 2 * MAX_SIZE - 101);
    assert!(said(&mut server).is_empty(), "half of the window has not come");
    feed(&mut server, last).expect("there is room");
    let more = (WINDOW / 2).to_be_bytes().to_vec();
    assert_eq!(said(&mut server), [0, 1].map(|stream| (kind::WINDOW_UPDATE, stream, more.clone())));
}
