//! The lines of the access log: JSON, or text for people. Each thread gathers its own, so that requests share nothing, and
//! gives them to the writer a few times a second.

use std::{
    cell::{Cell, OnceCell, RefCell},
    io::Write,
    net::SocketAddr,
    rc::Rc,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use itoa::Buffer;
use tokio::{sync::Notify, time::sleep};
use tracing_appender::non_blocking::WorkerGuard;

use super::{output::Output, target};
use crate::upstream::tls;

/// How long a line waits for others.
const DELAY: Duration = Duration::from_millis(50);
/// Lines are given to the writer once they are so many bytes together.
const BATCH: usize = 32 * 1024;

/// How lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// One JSON object for each.
    Json,
    /// A text with `name=value`.
    Text,
}

/// A field's name with what is around it.
#[derive(Clone, Copy)]
pub struct Name {
    /// As JSON has it.
    pub json: &'static str,
    /// As text has it.
    pub text: &'static str,
}

/// A [`Name`], which is put together when this is compiled.
macro_rules! name {
    ($name:literal) => {
        $crate::telemetry::access_log::lines::Name {
            json: concat!(",\"", $name, "\":"),
            text: concat!(" ", $name, "="),
        }
    };
}
pub(super) use name;

/// Fields as they are written, kept for all the lines that have the same.
#[derive(Debug, Default)]
pub struct Rendered(OnceCell<Box<[u8]>>);

/// Where lines go.
struct Sink {
    output: Mutex<Output>,
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
    let (output, guard) = Output::new(std::io::stderr());
    let _ = SINK.set(Sink { output: Mutex::new(output), format });
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
        sink.output.lock().unwrap_or_else(PoisonError::into_inner).give(lines);
    }
    lines.clear();
}

impl Rendered {
    /// As they were the first time.
    fn bytes(&self, format: Format, put: impl FnOnce(&mut Line<'_>)) -> &[u8] {
        self.0.get_or_init(|| {
            let mut bytes = Vec::new();
            put(&mut Line { bytes: &mut bytes, format });
            bytes.into()
        })
    }
}

/// A line that is being written.
pub struct Line<'l> {
    bytes: &'l mut Vec<u8>,
    format: Format,
}

impl Line<'_> {
    /// Adds a text.
    #[inline(always)]
    pub fn text(&mut self, name: Name, value: &str) {
        self.name(name);
        quoted(self.bytes, value);
    }

    /// Adds a text of ours, which has nothing in it that would have to be escaped.
    #[inline(always)]
    pub fn word(&mut self, name: Name, value: &str) {
        self.name(name);
        in_quotes(self.bytes, value);
    }

    /// Adds an address. It needs no quotes by itself, but is no number either.
    pub fn address(&mut self, name: Name, value: SocketAddr) {
        self.name(name);
        let quotes: &[u8] = if self.format == Format::Json { b"\"" } else { b"" };
        self.bytes.extend_from_slice(quotes);
        address(self.bytes, value);
        self.bytes.extend_from_slice(quotes);
    }

    /// Adds a number.
    #[inline(always)]
    pub fn number(&mut self, name: Name, value: u64) {
        self.name(name);
        self.bytes.extend_from_slice(Buffer::new().format(value).as_bytes());
    }

    /// Adds a yes or no.
    #[inline(always)]
    pub fn flag(&mut self, name: Name, value: bool) {
        self.name(name);
        self.bytes.extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// Adds fields that many lines have.
    pub fn rendered(&mut self, kept: &Rendered, put: impl FnOnce(&mut Line<'_>)) {
        self.bytes.extend_from_slice(kept.bytes(self.format, put));
    }

    /// As it is inlined, the length is known when this is compiled, and no call is needed to write so little.
    #[inline(always)]
    fn name(&mut self, name: Name) {
        match self.format {
            Format::Json => self.bytes.extend_from_slice(name.json.as_bytes()),
            Format::Text => self.bytes.extend_from_slice(name.text.as_bytes()),
        }
    }
}

/// Writes a line with the fields that `put` puts into it.
pub fn write(put: impl FnOnce(&mut Line<'_>)) {
    let Some(sink) = SINK.get() else { return };
    LINES.with_borrow_mut(|lines| {
        if lines.is_empty() {
            BEGUN.with(|begun| begun.notify_one());
        }
        line(lines, sink.format, put);
        if lines.len() > BATCH {
            give(lines);
        }
    });
}

fn line(lines: &mut Vec<u8>, format: Format, put: impl FnOnce(&mut Line<'_>)) {
    if format == Format::Json {
        lines.extend_from_slice(b"{\"timestamp\":\"");
    }
    timestamp(lines);
    lines.extend_from_slice(match format {
        Format::Json => b"\",\"level\":\"INFO\",\"message\":\"request\"",
        Format::Text => concat!("  INFO ", target!(), ": request").as_bytes(),
    });
    put(&mut Line { bytes: lines, format });
    lines.extend_from_slice(match format {
        Format::Json => concat!(",\"target\":\"", target!(), "\"}\n").as_bytes(),
        Format::Text => b"\n",
    });
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

/// A string of JSON, which also keeps a text on its line, and terminals and viewers from doing what it says.
fn quoted(line: &mut Vec<u8>, text: &str) {
    // 0xc2 and 0xe2 begin those beyond ASCII, among others.
    let is_suspect = |byte: u8| byte < b' ' || matches!(byte, b'"' | b'\\' | 0x7f | 0xc2 | 0xe2);
    // Looked through to its end, many bytes at a time: as a rule there is none.
    if !text.bytes().fold(false, |found, byte| found | is_suspect(byte)) {
        in_quotes(line, text);
        return;
    }
    line.push(b'"');
    for c in text.chars() {
        // To a vector nothing fails.
        let _ = match c {
            '"' | '\\' => write!(line, "\\{c}"),
            '\n' => line.write_all(b"\\n"),
            '\r' => line.write_all(b"\\r"),
            '\t' => line.write_all(b"\\t"),
            _ if is_control(c) => write!(line, "\\u{:04x}", u32::from(c)),
            _ => write!(line, "{c}"),
        };
    }
    line.push(b'"');
}

/// Controls, line separators, and what turns the direction of text (UAX #9 section 2).
fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn in_quotes(line: &mut Vec<u8>, text: &str) {
    line.push(b'"');
    line.extend_from_slice(text.as_bytes());
    line.push(b'"');
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

    use super::super::TARGET;

    fn written(format: Format) -> String {
        let (mut lines, kept) = (Vec::new(), Rendered::default());
        for host in ["b.example", "a.example"] {
            lines.clear();
            line(&mut lines, format, |line| {
                line.word(name!("host"), host);
                line.text(name!("path"), "/a\"b\\\n");
                line.rendered(&kept, |line| {
                    line.address(name!("origin"), ([127, 0, 0, 1], 80).into());
                    line.address(name!("upstream"), (std::net::Ipv6Addr::LOCALHOST, 443).into());
                });
                line.number(name!("status"), 200);
                line.flag(name!("reused"), true);
            });
        }
        String::from_utf8(lines).expect("UTF-8")
    }

    #[test]
    fn a_line_of_json_is_an_object() {
        let line = written(Format::Json);
        assert!(line.ends_with('\n'));
        let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&object["host"], &object["path"]), (&"a.example".into(), &"/a\"b\\\n".into()));
        assert_eq!((&object["origin"], &object["status"]), (&"127.0.0.1:80".into(), &200.into()));
        assert_eq!(object["upstream"], "[::1]:443");
        assert_eq!((&object["reused"], &object["target"]), (&true.into(), &TARGET.into()));
        let now = object["timestamp"].as_str().expect("a text");
        assert!(
            now.ends_with('Z') && now.as_bytes()[19] == b'.' && now[20..26].bytes().all(|byte| byte.is_ascii_digit())
        );
        assert_eq!(object["timestamp"].as_str().map(str::len), Some("2026-01-01T00:00:00.000000Z".len()));
    }

    #[test]
    fn what_terminals_would_act_on_is_escaped() {
        for (text, expected) in [
            ("/\u{7f}\u{1b}[2J\0", r"/\u007f\u001b[2J\u0000"),
            ("/\u{9b}2J\u{85}", r"/\u009b2J\u0085"),
            ("/a\u{2028}b\u{202e}c\u{2066}", r"/a\u2028b\u202ec\u2066"),
            ("/\"\\\t\r\n", r#"/\"\\\t\r\n"#),
            // Their neighbours are letters and signs.
            ("/é\u{a0}â\u{2027}\u{206a}", "/é\u{a0}â\u{2027}\u{206a}"),
        ] {
            let mut line = Vec::new();
            quoted(&mut line, text);
            let line = String::from_utf8(line).expect("UTF-8");
            assert_eq!(line, format!("\"{expected}\""));
            assert_eq!(serde_json::from_str::<String>(&line).ok().as_deref(), Some(text));
        }
    }

    #[test]
    fn a_line_of_text_is_one_line() {
        let line = written(Format::Text);
        let expected = "  INFO egress::access: request host=\"a.example\" path=\"/a\\\"b\\\\\\n\" origin=127.0.0.1:80 upstream=[::1]:443 status=200 reused=true\n";
        assert_eq!(line.split_once('Z').map(|(_, rest)| rest), Some(expected));
    }
}
