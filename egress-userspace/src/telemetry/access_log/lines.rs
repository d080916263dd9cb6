//! The lines of the access log: JSON, or text for people. Each thread gathers its own, so that requests share nothing, and
//! gives them to the writer a few times a second.

use std::{
    cell::{Cell, RefCell},
    io::Write,
    net::SocketAddr,
    rc::Rc,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use itoa::Buffer;
use tokio::{sync::Notify, time::sleep};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::TARGET;
use crate::upstream::tls;

/// How long a line waits for others.
const DELAY: Duration = Duration::from_millis(50);
/// Lines are given to the writer once they are so many bytes together.
const BATCH: usize = 32 * 1024;
/// Batches that wait for a reader who is slow; what is beyond them is dropped.
const WAITING: usize = 256;

/// How lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// One JSON object for each.
    Json,
    /// A text with `name=value`.
    Text,
}

/// The value of a field.
pub enum Value<'a> {
    /// A text.
    Text(&'a str),
    /// An address.
    Address(SocketAddr),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
}

/// Where lines go.
struct Sink {
    writer: NonBlocking,
    format: Format,
}

static SINK: OnceLock<Sink> = OnceLock::new();

thread_local! {
    static BEGUN: Rc<Notify> = Rc::default();
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static CLOCK: Cell<(u64, [u8; 19])> = const { Cell::new((u64::MAX, [0; 19])) };
}

/// Has lines written to standard error by a thread of its own, until the guard is dropped. Only the first call counts.
pub fn write_to_standard_error(format: Format) -> WorkerGuard {
    let (writer, guard) =
        NonBlockingBuilder::default().buffered_lines_limit(WAITING).thread_name("access-log").finish(std::io::stderr());
    let _ = SINK.set(Sink { writer, format });
    guard
}

/// Gives this thread's lines to the writer, again and again.
pub async fn keep_flushing() {
    let begun = BEGUN.with(Rc::clone);
    loop {
        begun.notified().await;
        sleep(DELAY).await;
        flush();
    }
}

/// Gives this thread's lines to the writer.
pub fn flush() {
    LINES.with_borrow_mut(give);
}

fn give(lines: &mut Vec<u8>) {
    if let Some(sink) = SINK.get()
        && !lines.is_empty()
    {
        // It never fails, but drops what is too much.
        let _ = sink.writer.clone().write_all(lines);
    }
    lines.clear();
}

/// Writes a line with these fields, those without a value left out.
pub fn write(fields: &[(&str, Option<Value<'_>>)]) {
    let Some(sink) = SINK.get() else { return };
    LINES.with_borrow_mut(|lines| {
        if lines.is_empty() {
            BEGUN.with(|begun| begun.notify_one());
        }
        match sink.format {
            Format::Json => json(lines, fields),
            Format::Text => text(lines, fields),
        }
        lines.push(b'\n');
        if lines.len() > BATCH {
            give(lines);
        }
    });
}

fn json(line: &mut Vec<u8>, fields: &[(&str, Option<Value<'_>>)]) {
    line.extend_from_slice(b"{\"timestamp\":\"");
    timestamp(line);
    line.extend_from_slice(b"\",\"level\":\"INFO\",\"message\":\"request\"");
    for (name, value) in fields {
        let Some(value) = value else { continue };
        line.extend_from_slice(b",\"");
        line.extend_from_slice(name.as_bytes());
        line.extend_from_slice(b"\":");
        put(line, value, "\"");
    }
    line.extend_from_slice(b",\"target\":\"");
    line.extend_from_slice(TARGET.as_bytes());
    line.extend_from_slice(b"\"}");
}

fn text(line: &mut Vec<u8>, fields: &[(&str, Option<Value<'_>>)]) {
    timestamp(line);
    line.extend_from_slice(b"  INFO ");
    line.extend_from_slice(TARGET.as_bytes());
    line.extend_from_slice(b": request");
    for (name, value) in fields {
        let Some(value) = value else { continue };
        line.push(b' ');
        line.extend_from_slice(name.as_bytes());
        line.push(b'=');
        put(line, value, "");
    }
}

/// A value; between `quotes` if it needs none by itself, but is no number either.
fn put(line: &mut Vec<u8>, value: &Value<'_>, quotes: &str) {
    // To a vector nothing fails.
    match value {
        Value::Text(text) => quoted(line, text),
        Value::Address(value) => {
            line.extend_from_slice(quotes.as_bytes());
            address(line, *value);
            line.extend_from_slice(quotes.as_bytes());
        }
        Value::Number(number) => line.extend_from_slice(Buffer::new().format(*number).as_bytes()),
        Value::Flag(flag) => line.extend_from_slice(if *flag { b"true" } else { b"false" }),
    }
}

/// An address, as its `Display` would have it, which takes several times as long.
fn address(line: &mut Vec<u8>, address: SocketAddr) {
    let SocketAddr::V4(v4) = address else {
        // To a vector nothing fails.
        let _ = write!(line, "{address}");
        return;
    };
    for (octet, end) in v4.ip().octets().iter().zip(b"...:") {
        line.extend_from_slice(Buffer::new().format(*octet).as_bytes());
        line.push(*end);
    }
    line.extend_from_slice(Buffer::new().format(v4.port()).as_bytes());
}

/// A string of JSON, which also keeps a text on its line.
fn quoted(line: &mut Vec<u8>, text: &str) {
    if text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\' || byte == 0x7f) {
        // To a vector nothing fails, and strings can be serialized.
        let _ = serde_json::to_writer(line, text);
    } else {
        line.push(b'"');
        line.extend_from_slice(text.as_bytes());
        line.push(b'"');
    }
}

/// The time in RFC 3339's format, with microseconds.
fn timestamp(line: &mut Vec<u8>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (mut second, mut date) = CLOCK.get();
    if second != now.as_secs() {
        second = now.as_secs();
        let text = tls::rfc3339(i64::try_from(second).unwrap_or_default());
        date.copy_from_slice(&text.as_bytes()[..19]);
        CLOCK.set((second, date));
    }
    line.extend_from_slice(&date);
    // With the leading digit six others come, zeros included.
    let mut digits = Buffer::new();
    line.push(b'.');
    line.extend_from_slice(&digits.format(1_000_000 + now.subsec_micros()).as_bytes()[1..]);
    line.push(b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> [(&'static str, Option<Value<'static>>); 7] {
        [
            ("host", Some(Value::Text("a.example"))),
            ("path", Some(Value::Text("/a\"b\\\n"))),
            ("origin", Some(Value::Address(([127, 0, 0, 1], 80).into()))),
            ("upstream", Some(Value::Address((std::net::Ipv6Addr::LOCALHOST, 443).into()))),
            ("status", Some(Value::Number(200))),
            ("reused", Some(Value::Flag(true))),
            ("error", None),
        ]
    }

    #[test]
    fn a_line_of_json_is_an_object() {
        let mut line = Vec::new();
        json(&mut line, &fields());
        let object: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!(object["path"], "/a\"b\\\n");
        assert_eq!((&object["origin"], &object["status"]), (&"127.0.0.1:80".into(), &200.into()));
        assert_eq!(object["upstream"], "[::1]:443");
        assert_eq!((&object["reused"], &object["target"]), (&true.into(), &TARGET.into()));
        let now = object["timestamp"].as_str().expect("a text");
        assert!(
            now.ends_with('Z') && now.as_bytes()[19] == b'.' && now[20..26].bytes().all(|byte| byte.is_ascii_digit())
        );
        assert_eq!(object["timestamp"].as_str().map(str::len), Some("2026-01-01T00:00:00.000000Z".len()));
        assert!(object.get("error").is_none());
    }

    #[test]
    fn a_line_of_text_is_one_line() {
        let mut line = Vec::new();
        text(&mut line, &fields());
        let line = String::from_utf8(line).expect("UTF-8");
        let expected = "  INFO egress::access: request host=\"a.example\" path=\"/a\\\"b\\\\\\n\" origin=127.0.0.1:80 upstream=[::1]:443 status=200 reused=true";
        assert_eq!(line.split_once('Z').map(|(_, rest)| rest), Some(expected));
    }
}
