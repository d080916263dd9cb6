//! HTTP/2 connections that requests share: how many there are, and what becomes of requests when one ends.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    origin::{Frames, Origin, Reply, code},
    process::Command,
    wait::PATIENCE,
};
use nix::sys::signal::Signal;
use tokio::sync::watch;

use super::{CLIENT, EMPTY, HOST, agent_with_one_worker, configure, curl, origin, origin_http2};

/// Requests of one curl at the same time, each with a client connection of its own.
pub(crate) fn at_once(bed: &TestBed, count: usize, arguments: &[&str]) -> Result<Command> {
    let url = format!("http://{HOST}/[1-{count}]");
    let parallel = ["-q", "-sS", "--max-time", "15", "--parallel", "--parallel-immediate", "--parallel-max"];
    let statuses = ["-o", "/dev/null", "-w", "%{http_code}\n"];
    let command = bed.client_command("curl")?.args(parallel).args([count.to_string()]);
    Ok(command.args(statuses).args(arguments).args([url]))
}

/// An origin that answers when the test says so.
fn patient(bed: &TestBed) -> Result<(Origin, watch::Sender<bool>)> {
    let (release, released) = watch::channel(false);
    let origin =
        origin_http2(bed)?.handler(move |_| Reply::Later(released.clone(), Box::new(Reply::ok("fine")))).start()?;
    Ok((origin, release))
}

#[test]
fn requests_at_the_same_time_share_one_connection_from_the_first_on() -> Result<()> {
    const COUNT: usize = 40;
    let bed = TestBed::new("http2-shared")?;
    let (origin, release) = patient(&bed)?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let output = std::thread::scope(|scope| {
        let client = scope.spawn(|| at_once(&bed, COUNT, &[])?.run());
        // All of them are under way before the first is answered.
        origin.wait_for_requests(COUNT)?;
        release.send_replace(true);
        client.join().expect("curl's thread does not panic")
    })?;
    ensure!(output.text() == "200\n".repeat(COUNT), "{output:?}");
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    let records = agent.wait_for_records(COUNT)?;
    ensure!(records.iter().filter(|record| record.text("reused") == "false").count() == 1);
    ensure!(agent.metrics()?.sum("egress_upstream_handshakes_total", &[]) == 1.0);
    Ok(())
}

#[test]
fn an_origin_of_http1_is_asked_once_and_then_known() -> Result<()> {
    // As many as curl makes at the same time.
    const COUNT: usize = 300;
    let bed = TestBed::new("http1-known")?;
    let (release, released) = watch::channel(true);
    let held = origin(&bed)?.handler(move |_| Reply::Later(released.clone(), Box::new(Reply::Raw(EMPTY.into()))));
    let origin = held.start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    for round in 1..=2 {
        release.send_replace(false);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| at_once(&bed, COUNT, &[])?.run());
            origin.wait_for_requests(COUNT * round)?;
            release.send_replace(true);
            let output = client.join().expect("curl's thread does not panic")?;
            ensure!(output.text() == "200\n".repeat(COUNT), "{output:?}");
            Ok(())
        })?;
        // Idle ones serve the second round, however many they are.
        ensure!(origin.connections() == COUNT, "{} connections", origin.connections());
    }
    Ok(())
}

#[test]
fn more_requests_than_an_origin_takes_at_once_get_another_connection() -> Result<()> {
    const LIMIT: u32 = 5;
    const COUNT: usize = 30;
    let bed = TestBed::new("http2-limit")?;
    // Answers when all are there.
    let (count, counted) = watch::channel(0);
    let origin = origin_http2(&bed)?
        .frames(move |mut frames| {
            let (count, mut counted) = (count.clone(), counted.clone());
            async move {
                frames.greet(LIMIT).await?;
                let mut under_way = Vec::new();
                loop {
                    let all_there = async { counted.wait_for(|count| *count >= COUNT).await.is_ok() };
                    let asked = tokio::select! {
                        stream = frames.request() => Some(stream?),
                        true = all_there, if !under_way.is_empty() => None,
                    };
                    match asked {
                        Some(stream) if under_way.len() < LIMIT as usize => {
                            under_way.push(stream);
                            count.send_modify(|count| *count += 1);
                        }
                        Some(stream) => frames.reset(stream, code::REFUSED_STREAM).await?,
                        None => {
                            for stream in under_way.drain(..) {
                                frames.answer(stream, b"fine").await?;
                            }
                        }
                    }
                }
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = at_once(&bed, COUNT, &["-d", "amount=100"])?.run()?;
    ensure!(output.text() == "200\n".repeat(COUNT), "{output:?}");
    ensure!(origin.connections() == COUNT / LIMIT as usize, "{} connections", origin.connections());
    Ok(())
}

#[test]
fn a_stream_counts_until_its_end_though_all_content_has_come() -> Result<()> {
    let bed = TestBed::new("http2-endless")?;
    let origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet(1).await?;
            let stream = frames.request().await?;
            frames.head(stream, &[("content-length", "4")]).await?;
            frames.data(stream, b"fine").await?;
            frames.closed().await
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    for connections in 1..=2 {
        ensure!(curl(&bed, &["-d", "amount=100"])?.success()?.text() == "fine");
        ensure!(origin.connections() == connections, "{} connections", origin.connections());
    }
    Ok(())
}

/// Serves connections by frames, and counts the requests that it had: those on the first by `first`, those on others by an
/// answer each.
fn in_frames<F>(bed: &TestBed, first: fn(Frames, Arc<AtomicUsize>) -> F) -> Result<(Origin, Arc<AtomicUsize>)>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let answered = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answered);
    let origin = origin_http2(bed)?
        .frames(move |mut frames| {
            let answered = Arc::clone(&counter);
            async move {
                frames.greet(100).await?;
                if frames.connection == 0 {
                    return first(frames, answered).await;
                }
                loop {
                    let stream = frames.request().await?;
                    answered.fetch_add(1, Ordering::Relaxed);
                    frames.answer(stream, b"fine").await?;
                }
            }
        })
        .start()?;
    Ok((origin, answered))
}

#[test]
fn a_refused_request_is_sent_again_whatever_it_is() -> Result<()> {
    let bed = TestBed::new("http2-refused")?;
    let (origin, answered) = in_frames(&bed, |mut frames, answered| async move {
        for _ in 0..2 {
            let stream = frames.request().await?;
            frames.reset(stream, code::REFUSED_STREAM).await?;
        }
        let stream = frames.request().await?;
        answered.fetch_add(1, Ordering::Relaxed);
        frames.answer(stream, b"fine").await?;
        frames.closed().await
    })?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    ensure!(curl(&bed, &["-d", "amount=100"])?.success()?.text() == "fine");
    ensure!(answered.load(Ordering::Relaxed) == 1 && origin.connections() == 1);
    ensure!(agent.wait_for_records(1)?[0].text("received") == "10");
    Ok(())
}

#[test]
fn an_origin_that_refuses_without_end_is_a_502() -> Result<()> {
    let bed = TestBed::new("http2-refuses")?;
    let (_origin, _) = in_frames(&bed, |mut frames, _| async move {
        loop {
            let stream = frames.request().await?;
            frames.reset(stream, code::REFUSED_STREAM).await?;
        }
    })?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = curl(&bed, &["-o", "/dev/null", "-w", "%{http_code}"])?;
    ensure!(output.text() == "502", "{output:?}");
    Ok(())
}

#[test]
fn what_a_goodbye_leaves_out_is_sent_again_and_the_rest_goes_on() -> Result<()> {
    let bed = TestBed::new("http2-goaway")?;
    let (origin, answered) = in_frames(&bed, |mut frames, answered| async move {
        let streams = [frames.request().await?, frames.request().await?, frames.request().await?];
        let served = streams[0];
        frames.go_away(served, code::NO_ERROR).await?;
        answered.fetch_add(1, Ordering::Relaxed);
        frames.head(served, &[]).await?;
        frames.data(served, b"still ").await?;
        frames.data(served, b"served").await?;
        frames.end(served).await?;
        frames.closed().await
    })?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let output = at_once(&bed, 3, &["-d", "amount=100"])?.run()?;
    ensure!(output.text() == "200\n".repeat(3), "{output:?}");
    ensure!(answered.load(Ordering::Relaxed) == 3, "{} were answered", answered.load(Ordering::Relaxed));
    ensure!(origin.connections() == 2, "{} connections", origin.connections());
    ensure!(agent.wait_for_records(3)?.iter().all(|record| record.text("outcome") == "upgraded"));
    Ok(())
}

#[test]
fn a_connection_that_has_said_goodbye_is_left() -> Result<()> {
    let bed = TestBed::new("http2-after-goaway")?;
    let (origin, answered) = in_frames(&bed, |mut frames, answered| async move {
        let stream = frames.request().await?;
        answered.fetch_add(1, Ordering::Relaxed);
        frames.answer(stream, b"fine").await?;
        frames.go_away(stream, code::NO_ERROR).await?;
        frames.closed().await
    })?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    for _ in 0..3 {
        ensure!(curl(&bed, &["-d", "amount=100"])?.success()?.text() == "fine");
    }
    ensure!(answered.load(Ordering::Relaxed) == 3 && origin.connections() == 2);
    Ok(())
}

/// A connection that answers one request, and breaks upon the next.
async fn forgetful(mut frames: Frames, answered: Arc<AtomicUsize>) -> Result<()> {
    let stream = frames.request().await?;
    answered.fetch_add(1, Ordering::Relaxed);
    frames.answer(stream, b"fine").await?;
    frames.request().await?;
    answered.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

#[test]
fn a_get_that_loses_its_connection_is_sent_again_and_a_post_is_not() -> Result<()> {
    for (arguments, status, count) in [(&["-X", "GET"][..], "200", 3), (&["-d", "amount=100"], "502", 2)] {
        let bed = TestBed::new("http2-lost")?;
        let (origin, answered) = in_frames(&bed, forgetful)?;
        let config = configure(&bed)?;
        let agent = agent_with_one_worker(&bed, &config)?;
        curl(&bed, &[])?.success()?;
        let output = curl(&bed, &[arguments, &["-o", "/dev/null", "-w", "%{http_code}"]].concat())?;
        ensure!(output.text() == status, "{arguments:?}: {output:?}");
        ensure!(answered.load(Ordering::Relaxed) == count, "{arguments:?}");
        ensure!(agent.wait_for_records(2)?[1].text("status") == status);
        // It is not held against the origin.
        curl(&bed, &[])?.success()?;
        ensure!(origin.connections() == 2, "{arguments:?}: {} connections", origin.connections());
    }
    Ok(())
}

#[test]
fn a_get_is_not_sent_again_on_a_connection_that_was_fresh() -> Result<()> {
    let bed = TestBed::new("http2-lost-fresh")?;
    let (origin, _) = in_frames(&bed, |mut frames, _| async move { frames.request().await.map(drop) })?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let output = curl(&bed, &["-o", "/dev/null", "-w", "%{http_code}"])?;
    ensure!(output.text() == "502" && origin.connections() == 1, "{output:?}");
    Ok(())
}

#[test]
fn a_failure_to_connect_is_everybodys_who_waited() -> Result<()> {
    let bed = TestBed::new("http2-nobody")?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let output = at_once(&bed, 20, &[])?.run()?;
    ensure!(output.text() == "502\n".repeat(20), "{output:?}");
    let records = agent.wait_for_records(20)?;
    ensure!(records.iter().all(|record| record.text("error").contains("Connection refused")), "{records:?}");
    // Somebody is there now.
    let _origin = origin_http2(&bed)?.start()?;
    curl(&bed, &[])?.success().map(drop)
}

#[test]
fn a_drain_does_not_wait_for_connections_that_are_idle() -> Result<()> {
    let bed = TestBed::new("http2-drain")?;
    let (origin, release) = patient(&bed)?;
    let config = configure(&bed)?;
    let mut agent = agent_with_one_worker(&bed, &config)?;
    let address = bed.sockets(HOST, 80)[0].to_string();
    let mut client = bed.client_command(CLIENT)?.args(["http", &address]).spawn()?;
    origin.wait_for_requests(1)?;
    agent.process().signal(Signal::SIGTERM)?;
    agent.process().wait_for_line("the drain", |line| line.contains("draining"))?;
    ensure!(client.is_running());
    release.send_replace(true);
    client.wait_for_output("fine")?;
    // Long before its drain timeout: the connection that is left idle holds nothing up.
    ensure!(agent.process().wait(PATIENCE)?.success());
    ensure!(origin.failures().is_empty(), "{:?}", origin.failures());
    Ok(())
}

/// What was under way for them still comes, and is nobody's fault.
#[test]
fn those_who_give_up_do_not_harm_the_others() -> Result<()> {
    const COUNT: usize = 100;
    let bed = TestBed::new("http2-given-up")?;
    let (arrived, arrivals) = std::sync::mpsc::channel();
    let origin = origin_http2(&bed)?.frames(move |mut frames| {
        let arrived = arrived.clone();
        async move {
            frames.greet(200).await?;
            let patient = frames.request().await?;
            arrived.send(())?;
            for _ in 0..COUNT {
                frames.request().await?;
            }
            arrived.send(())?;
            let mut given_up = Vec::new();
            while given_up.len() < COUNT {
                given_up.push(frames.reset_by_client().await?.0);
            }
            for stream in &given_up {
                frames.head(*stream, &[]).await?;
            }
            for stream in given_up.iter().cycle().take(30 * COUNT) {
                frames.data(*stream, &[b'x'; 1000]).await?;
            }
            frames.answer(patient, b"fine").await?;
            frames.closed().await
        }
    });
    let origin = origin.start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let mut patient = bed.client_command("curl")?.args(["-q", "-sS", "--max-time", "15", super::URL]).spawn()?;
    arrivals.recv_timeout(PATIENCE)?;
    let url = format!("http://{HOST}/[1-{COUNT}]");
    let arguments =
        ["-q", "-sS", "--http2-prior-knowledge", "--parallel", "--parallel-immediate", "--parallel-max", "200", &url];
    let mut others = bed.client_command("curl")?.args(arguments).spawn()?;
    arrivals.recv_timeout(PATIENCE)?;
    others.kill();
    let status = patient.wait(PATIENCE)?;
    ensure!(status.success() && patient.stdout() == "fine", "{status}: {:?}", patient.stderr());
    ensure!(origin.connections() == 1, "{} connections", origin.connections());
    Ok(())
}
