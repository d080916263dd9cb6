//! HTTP/2 frame by frame (RFC 9113 section 4), for what no library would do.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::Wire;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// What there is room for to begin with (RFC 9113 section 6.9.2), and what a frame has at most, in bytes.
const WINDOW: i64 = 65_535;
const MAX_FRAME: i64 = 16_384;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const ENABLE_CONNECT_PROTOCOL: u16 = 8;

/// Error codes (RFC 9113 section 7).
pub mod code {
    /// No error.
    pub const NO_ERROR: u32 = 0;
    /// A defect of the sender's.
    pub const INTERNAL_ERROR: u32 = 2;
    /// The request was not looked at.
    pub const REFUSED_STREAM: u32 = 7;
    /// The response is of no use any more.
    pub const CANCEL: u32 = 8;
    /// The client asks for too much.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
    /// HTTP/1.1 is to be used instead.
    pub const HTTP_1_1_REQUIRED: u32 = 13;
}

/// A connection that speaks HTTP/2 as the test says. It is closed when dropped.
pub struct Frames {
    /// Number of the connection, from 0.
    pub connection: usize,
    wire: Wire,
    received: Vec<u8>,
    windows: Windows,
}

/// How much the client takes, in bytes.
#[derive(Debug, Default)]
struct Windows {
    /// What it has said of all streams, beyond what there is to begin with.
    initial: i64,
    /// What has come to that of a stream, or of the connection (0), less what was sent.
    changes: HashMap<u32, i64>,
}

/// A frame.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frames {
    /// A connection of which nothing is read yet.
    pub(super) fn new(connection: usize, wire: Wire) -> Self {
        Self { connection, wire, received: Vec::new(), windows: Windows::default() }
    }

    /// Takes the client's preface and tells it how many streams it may have.
    pub async fn greet(&mut self, max_concurrent_streams: u32) -> Result<()> {
        self.settle(&[(MAX_CONCURRENT_STREAMS, max_concurrent_streams)]).await
    }

    /// Takes the client's preface and tells it that streams can carry other protocols (RFC 8441 section 3).
    pub async fn greet_other_protocols(&mut self) -> Result<()> {
        self.settle(&[(ENABLE_CONNECT_PROTOCOL, 1)]).await
    }

    /// Takes the client's preface and tells it how much it may send of each request, in bytes, before it is given more room.
    pub async fn greet_with_window(&mut self, size: u32) -> Result<()> {
        self.settle(&[(INITIAL_WINDOW_SIZE, size)]).await
    }

    /// Gives the client room for more of a request.
    pub async fn widen(&mut self, stream: u32, by: u32) -> Result<()> {
        self.send(WINDOW_UPDATE, 0, stream, &by.to_be_bytes()).await
    }

    async fn settle(&mut self, settings: &[(u16, u32)]) -> Result<()> {
        while self.received.len() < PREFACE.len() {
            ensure!(self.fill().await?, "the client's preface ends early");
        }
        ensure!(self.received.starts_with(PREFACE), "no preface");
        self.received.drain(..PREFACE.len());
        let setting = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat();
        self.send(SETTINGS, 0, 0, &settings.iter().flat_map(setting).collect::<Vec<_>>()).await
    }

    /// Waits for the head of a request, and gives the number of its stream. Other frames are read over.
    pub async fn request(&mut self) -> Result<u32> {
        loop {
            let frame = self.next().await?.context("the client closes")?;
            if frame.kind == HEADERS {
                return Ok(frame.stream);
            }
        }
    }

    /// Waits for some content of a request, and gives its stream, what it is, and whether it is the last. Other frames are read over.
    pub async fn sent(&mut self) -> Result<(u32, Vec<u8>, bool)> {
        loop {
            let frame = self.next().await?.context("the client closes")?;
            if frame.kind == DATA {
                return Ok((frame.stream, frame.payload, frame.flags & END_STREAM != 0));
            }
        }
    }

    /// Waits for a reset by the client, and gives its stream and code.
    pub async fn reset_by_client(&mut self) -> Result<(u32, u32)> {
        loop {
            let frame = self.next().await?.context("the client closes")?;
            if frame.kind == RST_STREAM {
                return Ok((frame.stream, u32::from_be_bytes(frame.payload[..].try_into()?)));
            }
        }
    }

    /// Reads until the client closes.
    pub async fn closed(&mut self) -> Result<()> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// Sends the head of a response, with fields.
    pub async fn head(&mut self, stream: u32, fields: &[(&str, &str)]) -> Result<()> {
        // `:status: 200` has a place in the static table (RFC 7541 appendix A).
        let block = [&[0x88], &literals(fields)[..]].concat();
        self.send(HEADERS, END_HEADERS, stream, &block).await
    }

    /// Sends the head of an interim response, with fields.
    pub async fn interim(&mut self, stream: u32, status: &str, fields: &[(&str, &str)]) -> Result<()> {
        // The name has a place there, too.
        let block = [&[0x08], &text(status)[..], &literals(fields)[..]].concat();
        self.send(HEADERS, END_HEADERS, stream, &block).await
    }

    /// Sends some of a response's content.
    pub async fn data(&mut self, stream: u32, content: &[u8]) -> Result<()> {
        self.send(DATA, 0, stream, content).await
    }

    /// Sends some of a response's content as the client makes room for it, where all of it is sent so.
    pub async fn data_as_there_is_room(&mut self, stream: u32, mut content: &[u8]) -> Result<()> {
        while !content.is_empty() {
            let Some(room) = self.windows.room(stream) else {
                self.next().await?.context("the client closes")?;
                continue;
            };
            let (piece, rest) = content.split_at(room.min(content.len()));
            self.windows.change(stream, -i64::try_from(piece.len())?);
            self.windows.change(0, -i64::try_from(piece.len())?);
            self.data(stream, piece).await?;
            content = rest;
        }
        Ok(())
    }

    /// Ends a response.
    pub async fn end(&mut self, stream: u32) -> Result<()> {
        self.send(DATA, END_STREAM, stream, &[]).await
    }

    /// Ends a response with trailers.
    pub async fn trailers(&mut self, stream: u32, fields: &[(&str, &str)]) -> Result<()> {
        self.trailers_as(stream, &literals(fields)).await
    }

    /// The same with fields as RFC 7541 has them.
    pub async fn trailers_as(&mut self, stream: u32, block: &[u8]) -> Result<()> {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, block).await
    }

    /// Sends a whole response.
    pub async fn answer(&mut self, stream: u32, content: &[u8]) -> Result<()> {
        self.head(stream, &[]).await?;
        self.data(stream, content).await?;
        self.end(stream).await
    }

    /// Resets a stream.
    pub async fn reset(&mut self, stream: u32, code: u32) -> Result<()> {
        self.send(RST_STREAM, 0, stream, &code.to_be_bytes()).await
    }

    /// Says that streams up to `last` are still served.
    pub async fn go_away(&mut self, last: u32, code: u32) -> Result<()> {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat()).await
    }

    async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            while self.received.len() < HEADER {
                if !self.fill().await? {
                    return Ok(None);
                }
            }
            let word = |at: usize| u32::from_be_bytes(self.received[at..at + 4].try_into().expect("four bytes"));
            let (length, kind, flags) = ((word(0) >> 8) as usize, self.received[3], self.received[4]);
            let stream = word(5) & (u32::MAX >> 1);
            while self.received.len() < HEADER + length {
                if !self.fill().await? {
                    bail!("the client closes in the middle of a frame");
                }
            }
            let payload = self.received.drain(..HEADER + length).skip(HEADER).collect();
            let frame = Frame { kind, flags, stream, payload };
            match (frame.kind, frame.flags & ACK) {
                (SETTINGS, 0) => {
                    self.windows.settle(&frame.payload);
                    self.send(SETTINGS, ACK, 0, &[]).await?;
                }
                (WINDOW_UPDATE, _) => {
                    self.windows.change(frame.stream, u32::from_be_bytes(frame.payload[..].try_into()?).into());
                    return Ok(Some(frame));
                }
                (PING, 0) => self.send(PING, ACK, 0, &frame.payload).await?,
                _ => return Ok(Some(frame)),
            }
        }
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len())?.to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.wire.write(&[&head, payload].concat()).await
    }

    /// Reads more; false at the end.
    async fn fill(&mut self) -> Result<bool> {
        let bytes = self.wire.read().await?;
        self.received.extend_from_slice(&bytes);
        Ok(!bytes.is_empty())
    }
}

impl Windows {
    /// How much of a stream can be sent in one frame now, if anything.
    fn room(&self, stream: u32) -> Option<usize> {
        let change = |stream| self.changes.get(&stream).copied().unwrap_or_default();
        let room = (WINDOW + self.initial + change(stream)).min(WINDOW + change(0)).min(MAX_FRAME);
        usize::try_from(room).ok().filter(|room| *room > 0)
    }

    fn change(&mut self, stream: u32, by: i64) {
        *self.changes.entry(stream).or_default() += by;
    }

    fn settle(&mut self, settings: &[u8]) {
        for setting in settings.as_chunks::<6>().0 {
            let [high, low, value @ ..] = *setting;
            if u16::from_be_bytes([high, low]) == INITIAL_WINDOW_SIZE {
                self.initial = i64::from(u32::from_be_bytes(value)) - WINDOW;
            }
        }
    }
}

/// Fields as literals with new names that are not indexed (RFC 7541 section 6.2.2).
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

fn text(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("short texts")], text.as_bytes()].concat()
}
