//! What a client has sent takes no room while it waits for the rest of its response, be that for hours.

use harness::origin::{Frames, Script};

use super::*;
use crate::{agent_with_one_worker, origin_http2};

const CLIENTS: usize = 64;
const SENT: usize = 60_000;
/// What is kept for a client and its connection to the origin may take so much, in bytes.
const EACH: u64 = 40 * 1024;

/// Reads requests of SENT bytes, and begins to answer each.
async fn begin_http2(mut frames: Frames) -> Result<()> {
    frames.greet(CLIENTS as u32).await?;
    frames.widen(0, (CLIENTS * SENT) as u32).await?;
    loop {
        let (stream, _, is_last) = frames.sent().await?;
        if is_last {
            frames.head(stream, &[]).await?;
            frames.data(stream, b"begun").await?;
        }
    }
}

/// The same over HTTP/1.1, with so much content.
fn begin_http1(content: usize) -> Script {
    script(move |mut wire| async move {
        let mut count = 0;
        while count < content {
            count += wire.read().await?.len();
        }
        wire.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n").await?;
        // Until the agent goes.
        wire.read().await.map(drop)
    })
}

/// Has clients with these arguments wait, and gives what each takes, in bytes.
fn of_each(bed: &TestBed, arguments: &[&str]) -> Result<u64> {
    let config = configure(bed)?;
    let mut agent = agent_with_one_worker(bed, &config)?;
    let begin = || {
        let client = bed.client_command("curl")?.args(["-q", "-sSN"]).args(arguments).arg(URL).spawn()?;
        client.wait_for_output("begun")?;
        anyhow::Ok(client)
    };
    // Whatever the first needs that later ones share.
    let _first = begin()?;
    let before = memory(&mut agent)?;
    let _others = (1..CLIENTS).map(|_| begin()).collect::<Result<Vec<_>>>()?;
    Ok(memory(&mut agent)?.saturating_sub(before) / (CLIENTS as u64 - 1))
}

#[test]
fn what_a_client_has_sent_is_not_kept_while_its_response_lasts() -> Result<()> {
    for version in ["HTTP/1.1", "HTTP/2"] {
        let bed = TestBed::new("http-waited")?;
        let _origin = match version {
            "HTTP/1.1" => origin(&bed)?.scripts(|_| Some(begin_http1(SENT))).start()?,
            _ => origin_http2(&bed)?.frames(begin_http2).start()?,
        };
        let file = bed.dir().join("content");
        fs::write(&file, vec![b'x'; SENT])?;
        let growth = of_each(&bed, &["--data-binary", &format!("@{}", file.display())])?;
        ensure!(growth < EACH, "{version}: {growth} bytes for each");
    }
    Ok(())
}

#[test]
fn nothing_of_a_large_head_is_kept_meanwhile() -> Result<()> {
    let bed = TestBed::new("http-waited-head")?;
    let _origin = origin(&bed)?.scripts(|_| Some(begin_http1(0))).start()?;
    let growth = of_each(&bed, &["-H", &format!("Cookie: {}", "x".repeat(SENT))])?;
    ensure!(growth < EACH, "{growth} bytes for each");
    Ok(())
}
