//! The same of connections that have switched protocols: who does not read holds up who writes, and nobody in between keeps much.

use harness::origin::{Frames, Origin, Wire};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::*;
use crate::{
    AGREED, agent_with_one_worker, ask_in_http2, frame, origin_http2,
    switch::{ASK, agree_to},
};

const VERSIONS: [&str; 2] = ["HTTP/1.1", "HTTP/2"];

/// All that is said, which is SIZE bytes.
fn content() -> Vec<u8> {
    (0..SIZE / MIB).flat_map(piece).collect()
}

/// An origin that speaks this version, and by it goes on in another protocol as one of these conversations says.
fn origin_of<F, G>(
    bed: &TestBed,
    version: &str,
    http1: impl Fn(Wire) -> F + Clone + Send + Sync + 'static,
    http2: impl Fn(Frames, u32) -> G + Clone + Send + Sync + 'static,
) -> Result<Origin>
where
    F: Future<Output = Result<()>> + Send + 'static,
    G: Future<Output = Result<()>> + Send + 'static,
{
    if version == "HTTP/1.1" {
        let scripts = move |request: &Request| {
            let (agreement, http1) = (agree_to(request), http1.clone());
            Some(script(move |mut wire| async move {
                wire.write(agreement.as_bytes()).await?;
                http1(wire).await
            }))
        };
        return origin(bed)?.scripts(scripts).start();
    }
    let frames = move |mut frames: Frames| {
        let http2 = http2.clone();
        async move {
            frames.greet_other_protocols().await?;
            // A connection is known to take such from its first request on.
            let first = frames.request().await?;
            frames.answer(first, b"fine").await?;
            let stream = frames.request().await?;
            frames.head(stream, &[]).await?;
            http2(frames, stream).await
        }
    };
    let origin = origin_http2(bed)?.frames(frames).start()?;
    Ok(origin)
}

/// Has a connection of HTTP/2 made, where that is the version.
fn prepare(bed: &TestBed, version: &str) -> Result<usize> {
    let is_http2 = version == "HTTP/2";
    ensure!(!is_http2 || curl(bed, &[])?.success()?.text() == "fine");
    Ok(is_http2.into())
}

/// An origin that says all of the content once it is told to, and counts what it could write.
fn talkative(bed: &TestBed, version: &str, told: watch::Receiver<bool>, written: Arc<AtomicU64>) -> Result<Origin> {
    let (of_http2, counter) = (told.clone(), Arc::clone(&written));
    let http1 = move |mut wire: Wire| {
        let (mut told, written) = (told.clone(), Arc::clone(&written));
        async move {
            told.wait_for(|told| *told).await?;
            for number in 0..SIZE / MIB {
                wire.write(&piece(number)).await?;
                written.fetch_add(MIB, Ordering::Relaxed);
            }
            wire.shutdown().await?;
            // To close with something unread resets the connection, and what is still on its way would be lost.
            while !wire.read().await?.is_empty() {}
            Ok(())
        }
    };
    let http2 = move |mut frames: Frames, stream| {
        let (mut told, written) = (of_http2.clone(), Arc::clone(&counter));
        async move {
            told.wait_for(|told| *told).await?;
            for number in 0..SIZE / MIB {
                frames.data_as_there_is_room(stream, &piece(number)).await?;
                written.fetch_add(MIB, Ordering::Relaxed);
            }
            frames.end(stream).await?;
            frames.closed().await
        }
    };
    origin_of(bed, version, http1, http2)
}

/// Whether the origin is held up, by an agent that does not grow.
fn check_held_up(agent: &mut Agent<'_>, written: &AtomicU64, before: u64) -> Result<()> {
    let held_at = held_up_at(written)?;
    ensure!(held_at < SIZE / 2, "the origin could write {} MiB to a reader that stands still", held_at / MIB);
    check_growth(agent, before)
}

fn check_growth(agent: &mut Agent<'_>, before: u64) -> Result<()> {
    let growth = peak_memory(agent)?.saturating_sub(before);
    ensure!(growth < GROWTH, "the agent grew by {} KiB", growth / 1024);
    Ok(())
}

#[test]
fn a_slow_reader_of_another_protocol_slows_the_origin_down_and_gets_everything() -> Result<()> {
    for version in VERSIONS {
        let bed = TestBed::new("switched-slow-reader")?;
        let ((tell, told), written) = (watch::channel(false), Arc::new(AtomicU64::new(0)));
        let _origin = talkative(&bed, version, told, Arc::clone(&written))?;
        let config = configure(&bed)?;
        let mut agent = agent_with_one_worker(&bed, &config)?;
        let others = prepare(&bed, version)?;
        let before = peak_memory(&mut agent)?;
        let mut client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
        client.write_stdin(ASK.as_bytes())?;
        client.wait_for_output("HTTP/1.1 101 ")?;
        client.signal(Signal::SIGSTOP)?;
        tell.send_replace(true);
        check_held_up(&mut agent, &written, before)?;
        client.signal(Signal::SIGCONT)?;
        ensure!(client.wait(PATIENCE)?.success(), "{version}: {:?}", client.stderr());
        let output = client.stdout_bytes();
        ensure!(output.ends_with(&content()), "{version}: {} bytes of another content", output.len());
        let record = agent.wait_for_records(others + 1)?.pop().context("no record")?;
        ensure!(record.text("protocol") == version && record.text("status") == "101", "{record:?}");
        ensure!(record.text("sent") == SIZE.to_string(), "{record:?}");
        check_growth(&mut agent, before)?;
    }
    Ok(())
}

#[test]
fn a_client_of_http2_without_room_for_another_protocol_slows_the_origin_down_and_gets_everything() -> Result<()> {
    let bed = TestBed::new("switched-no-room")?;
    let ((tell, told), written) = (watch::channel(false), Arc::new(AtomicU64::new(0)));
    let _origin = talkative(&bed, "HTTP/1.1", told, Arc::clone(&written))?;
    let config = configure(&bed)?;
    let mut agent = agent_with_one_worker(&bed, &config)?;
    let before = peak_memory(&mut agent)?;
    let mut client = bed.client_command(CLIENT)?.args(["talk", &bed.sockets(HOST, 80)[0].to_string()]).spawn()?;
    client.write_stdin(&ask_in_http2("websocket", "/chat"))?;
    client.wait_for_bytes(AGREED)?;
    tell.send_replace(true);
    check_held_up(&mut agent, &written, before)?;
    // WINDOW_UPDATE of the stream, and of the connection.
    let room = u32::try_from(SIZE)?.to_be_bytes();
    client.write_stdin(&[frame(8, 0, &room), [b"\0\0\x04\x08\0\0\0\0\0", &room[..]].concat()].concat())?;
    wait_until("all to be written", PATIENCE, || written.load(Ordering::Relaxed) == SIZE)?;
    // END_STREAM: it has nothing to say itself.
    client.write_stdin(&frame(0, 1, b""))?;
    ensure!(agent.wait_for_records(1)?[0].text("sent") == SIZE.to_string());
    ensure!(client.wait(PATIENCE)?.success(), "{:?}", client.stderr());
    ensure!(data(&client.stdout_bytes()) == content(), "it is another content");
    check_growth(&mut agent, before)
}

/// What is in the frames of content.
fn data(mut frames: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some((head, rest)) = frames.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (payload, rest) = rest.split_at(length.min(rest.len()));
        if head[3] == 0 {
            content.extend_from_slice(payload);
        }
        frames = rest;
    }
    content
}

#[test]
fn an_origin_that_reads_another_protocol_slowly_slows_the_client_down_and_gets_everything() -> Result<()> {
    for version in VERSIONS {
        let bed = TestBed::new("switched-slow-origin")?;
        let (go, gone) = watch::channel(false);
        let of_http2 = gone.clone();
        let http1 = move |mut wire: Wire| {
            let mut gone = gone.clone();
            async move {
                gone.wait_for(|go| *go).await?;
                let mut all = Vec::new();
                loop {
                    let bytes = wire.read().await?;
                    if bytes.is_empty() {
                        break;
                    }
                    all.extend(bytes);
                }
                ensure!(all == content(), "{} bytes of another content", all.len());
                wire.write(b"all of it").await?;
                wire.shutdown().await
            }
        };
        let http2 = move |mut frames: Frames, stream| {
            let mut gone = of_http2.clone();
            async move {
                gone.wait_for(|go| *go).await?;
                let (mut all, mut is_last) = (Vec::new(), false);
                while !is_last {
                    let (_, bytes, last) = frames.sent().await?;
                    for stream in [0, stream].into_iter().filter(|_| !bytes.is_empty()) {
                        frames.widen(stream, u32::try_from(bytes.len())?).await?;
                    }
                    is_last = last;
                    all.extend(bytes);
                }
                ensure!(all == content(), "{} bytes of another content", all.len());
                frames.data(stream, b"all of it").await?;
                frames.end(stream).await?;
                frames.closed().await
            }
        };
        let origin = origin_of(&bed, version, http1, http2)?;
        let config = configure(&bed)?;
        let mut agent = agent_with_one_worker(&bed, &config)?;
        let others = prepare(&bed, version)?;
        let before = peak_memory(&mut agent)?;
        let said = [ASK.as_bytes(), &content()].concat();
        let address = bed.sockets(HOST, 80)[0].to_string();
        let mut client = bed.client_command(CLIENT)?.args(["talk", &address]).stdin(said).spawn()?;
        client.wait_for_output("HTTP/1.1 101 ")?;
        wait_until("the client to be held up", PATIENCE, || agent_receive_queue_is_full(&bed))?;
        ensure!(client.is_running() && agent.records().len() == others);
        check_growth(&mut agent, before)?;
        go.send_replace(true);
        ensure!(client.wait(PATIENCE)?.success(), "{version}: {:?}: {:?}", client.stderr(), origin.failures());
        ensure!(client.stdout().ends_with("all of it"), "{version}: {:?}: {:?}", client.stdout(), origin.failures());
        let record = agent.wait_for_records(others + 1)?.pop().context("no record")?;
        ensure!(record.text("protocol") == version && record.text("received") == SIZE.to_string(), "{record:?}");
        check_growth(&mut agent, before)?;
    }
    Ok(())
}
