//! Content of which is known how much there is: it may be waited for, but not for long.

use harness::origin::{Frames, Origin, Wire};
use tokio::{sync::watch, time::sleep};

use super::*;
use crate::{agent_with_one_worker, origin_http2};

const VERSIONS: [&str; 2] = ["HTTP/1.1", "HTTP/2"];
/// Less than is worth to wait for.
const LITTLE: usize = 10_000;
/// Longer than anybody waits for more.
const A_MOMENT: Duration = Duration::from_millis(5);

/// A little, by the end of which it is known.
fn little(end: &str) -> Vec<u8> {
    [&vec![b'x'; LITTLE], end.as_bytes()].concat()
}

/// The origin's end of a response.
enum Sender {
    Http1(Wire),
    Http2(Frames, u32),
}

impl Sender {
    async fn head(&mut self, length: u64) -> Result<()> {
        match self {
            Self::Http1(wire) => {
                wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await
            }
            Self::Http2(frames, stream) => frames.head(*stream, &[("content-length", &length.to_string())]).await,
        }
    }

    async fn content(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Http1(wire) => wire.write(bytes).await,
            Self::Http2(frames, stream) => frames.data_as_there_is_room(*stream, bytes).await,
        }
    }
}

/// An origin that speaks this version, and answers so.
fn origin_of<F>(
    bed: &TestBed,
    version: &str,
    answer: impl Fn(Sender) -> F + Clone + Send + Sync + 'static,
) -> Result<Origin>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    if version == "HTTP/1.1" {
        let scripts = move |_: &Request| {
            let answer = answer.clone();
            Some(script(move |wire| answer(Sender::Http1(wire))))
        };
        return origin(bed)?.scripts(scripts).start();
    }
    let frames = move |mut frames: Frames| {
        let answer = answer.clone();
        async move {
            frames.greet(100).await?;
            let stream = frames.request().await?;
            answer(Sender::Http2(frames, stream)).await
        }
    };
    let origin = origin_http2(bed)?.frames(frames).start()?;
    Ok(origin)
}

#[test]
fn what_comes_slowly_of_much_is_passed_on_as_it_comes() -> Result<()> {
    for version in VERSIONS {
        check_slow(version, 0)?;
    }
    Ok(())
}

/// As long as much comes at a time, what there is may wait for more. It must not when no more comes.
#[test]
fn what_comes_slowly_after_much_is_passed_on_as_it_comes() -> Result<()> {
    for version in VERSIONS {
        check_slow(version, 8)?;
    }
    Ok(())
}

/// Checks that little pieces arrive of which each waits for the one before, after so many MiB that come at once.
fn check_slow(version: &str, fast: u64) -> Result<()> {
    const PIECES: [&str; 3] = ["first", "second", "third"];
    let bed = TestBed::new("announced-slow")?;
    let (tell, told) = watch::channel(0);
    let _origin = origin_of(&bed, version, move |mut sender| {
        let mut told = told.clone();
        async move {
            sender.head((fast + 1) * MIB).await?;
            for number in 0..fast {
                sender.content(&piece(number)).await?;
            }
            for (number, end) in PIECES.iter().enumerate() {
                told.wait_for(|told| *told >= number).await?;
                sender.content(&little(end)).await?;
            }
            told.wait_for(|told| *told >= PIECES.len()).await?;
            // What comes with the end is not lost.
            sender.content(&little("last")).await
        }
    })?;
    let config = configure(&bed)?;
    let agent = agent_with_one_worker(&bed, &config)?;
    let arguments = ["-q", "-sSN", "--max-time", "60", URL];
    let mut client = bed.client_command("curl")?.args(arguments).spawn()?;
    for (number, end) in PIECES.iter().enumerate() {
        tell.send_replace(number);
        client.wait_for_output(end)?;
    }
    tell.send_replace(PIECES.len());
    // The response is shorter than it says.
    ensure!(client.wait(PATIENCE)?.code() == Some(18), "{version}: {:?}", client.stderr());
    let mut expected: Vec<u8> = (0..fast).flat_map(piece).collect();
    PIECES.iter().chain(&["last"]).for_each(|end| expected.extend(little(end)));
    ensure!(client.stdout_bytes() == expected, "{version}: {} bytes", client.stdout_bytes().len());
    ensure!(agent.wait_for_records(1)?[0].text("outcome") == "truncated", "{version}: {:?}", agent.records());
    Ok(())
}

#[test]
fn what_comes_slowly_of_much_holds_up_nobody_else_on_its_connection() -> Result<()> {
    let bed = TestBed::new("announced-others")?;
    let origin = origin_http2(&bed)?
        .frames(|mut frames| async move {
            frames.greet(100).await?;
            let slow = frames.request().await?;
            frames.head(slow, &[("content-length", &MIB.to_string())]).await?;
            frames.data(slow, &little("first")).await?;
            loop {
                let other = frames.request().await?;
                frames.answer(other, b"fine").await?;
            }
        })
        .start()?;
    let config = configure(&bed)?;
    let _agent = agent_with_one_worker(&bed, &config)?;
    let arguments = ["-q", "-sSN", "--max-time", "60", URL];
    let slow = bed.client_command("curl")?.args(arguments).spawn()?;
    slow.wait_for_output("first")?;
    for _ in 0..10 {
        ensure!(curl(&bed, &[])?.success()?.text() == "fine");
    }
    ensure!(origin.connections() == 1);
    Ok(())
}

/// What was waited for is over with the response.
#[test]
fn what_follows_much_comes_by_the_same_connection_and_at_once() -> Result<()> {
    for is_http2 in [false, true] {
        let bed = TestBed::new("announced-then")?;
        let builder = if is_http2 { origin_http2(&bed)? } else { origin(&bed)? };
        let large = |request: &Request| request.target == "/large";
        let answer = move |request: &Request| Reply::ok(if large(request) { piece(0) } else { b"fine".to_vec() });
        let origin = builder.handler(answer).start()?;
        let config = configure(&bed)?;
        let _agent = agent_with_one_worker(&bed, &config)?;
        for _ in 0..10 {
            let response = bed.curl(&format!("http://{HOST}/large"))?.response()?;
            ensure!(response.body == piece(0), "{} bytes of another content", response.body.len());
            ensure!(curl(&bed, &[])?.success()?.text() == "fine");
        }
        ensure!(origin.connections() == 1, "{} connections", origin.connections());
    }
    Ok(())
}

/// Records of all lengths, some of which are later than anybody waits.
#[test]
fn much_arrives_as_it_is_in_whatever_pieces_it_comes() -> Result<()> {
    let content: Vec<u8> = (0..SIZE / MIB / 16).flat_map(piece).collect();
    for version in VERSIONS {
        let bed = TestBed::new("announced-pieces")?;
        let sent = content.clone();
        let _origin = origin_of(&bed, version, move |mut sender| {
            let sent = sent.clone();
            async move {
                sender.head(sent.len() as u64).await?;
                let (mut rest, mut number) = (&sent[..], 0);
                while !rest.is_empty() {
                    let (some, more) = rest.split_at((1 + number * 7919 % 16_383).min(rest.len()));
                    sender.content(some).await?;
                    if number % 20 == 0 {
                        sleep(A_MOMENT).await;
                    }
                    (rest, number) = (more, number + 1);
                }
                match sender {
                    Sender::Http1(mut wire) => wire.shutdown().await,
                    Sender::Http2(mut frames, stream) => {
                        frames.end(stream).await?;
                        frames.closed().await
                    }
                }
            }
        })?;
        let config = configure(&bed)?;
        let agent = agent_with_one_worker(&bed, &config)?;
        let response = bed.curl(URL)?.response()?;
        ensure!(response.body == content, "{version}: {} bytes of another content", response.body.len());
        ensure!(agent.wait_for_records(1)?[0].text("outcome") == "upgraded", "{version}: {:?}", agent.records());
    }
    Ok(())
}
