//! Applications, as they are found in pods: curl, and whatever languages the machine has.

use std::{
    process::{Command as StdCommand, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{process::Command, testbed::TestBed};

/// A call of curl.
#[derive(Debug)]
pub struct Curl {
    command: Command,
    url: String,
}

impl Curl {
    /// A call by a command that runs curl, wherever that is.
    pub fn new(command: Command, url: &str) -> Self {
        // -q: without the .curlrc of whoever runs the tests.
        Self { command: command.args(["-q", "-sS", "-i", "--max-time", "15"]), url: url.to_owned() }
    }

    /// Follows redirects.
    #[must_use]
    pub fn follow(self) -> Self {
        self.args(["-L"])
    }

    /// Adds a header.
    #[must_use]
    pub fn header(self, header: &str) -> Self {
        self.args(["-H", header])
    }

    /// Sends a body, by POST unless told otherwise.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.command = self.command.stdin(body);
        self.args(["--data-binary", "@-"])
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>) -> Self {
        self.command = self.command.args(args);
        self
    }

    /// Runs it. A failure of curl is a result, with the exit code; see `response` for a success that must be.
    pub fn run(self) -> Result<CurlResult> {
        let output = self.command.arg(&self.url).run()?;
        let mut responses = Vec::new();
        let mut rest = output.stdout.as_slice();
        while rest.starts_with(b"HTTP/") {
            let end = find(rest, b"\r\n\r\n").context("curl printed half a head")? + 4;
            responses.push(Head::parse(&rest[..end])?);
            rest = &rest[end..];
        }
        let body = rest.to_vec();
        Ok(CurlResult { exit_code: output.code(), responses, body, stderr: output.stderr, elapsed: output.elapsed })
    }

    /// Runs it, and fails unless it succeeds with exactly one response.
    pub fn response(self) -> Result<Response> {
        let url = self.url.clone();
        let result = self.run()?;
        if result.exit_code != 0 {
            bail!("curl {url} exits with {}: {}", result.exit_code, result.stderr);
        }
        let count = result.responses.len();
        let mut responses = result.responses;
        let head = responses.pop().filter(|_| count == 1).with_context(|| format!("curl {url}: {count} responses"))?;
        Ok(Response { head, body: result.body })
    }
}

/// What curl printed.
#[derive(Clone, Debug)]
pub struct CurlResult {
    /// 0, or what went wrong: 7 refused, 28 timeout, 52 empty reply, 56 reset, 60 certificate.
    pub exit_code: i32,
    /// All response heads: also those of redirects and 1xx.
    pub responses: Vec<Head>,
    /// The last body.
    pub body: Vec<u8>,
    /// Its complaints.
    pub stderr: String,
    /// How long it took, its own start included.
    pub elapsed: Duration,
}

impl CurlResult {
    /// The status codes of all responses.
    pub fn statuses(&self) -> Vec<u16> {
        self.responses.iter().map(|head| head.status).collect()
    }
}

/// A response.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status line and headers.
    pub head: Head,
    /// The body.
    pub body: Vec<u8>,
}

/// A response head.
#[derive(Clone, Debug)]
pub struct Head {
    /// `HTTP/1.1` or `HTTP/2`.
    pub version: String,
    /// The status.
    pub status: u16,
    /// The headers as they came.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub text: String,
}

impl Head {
    /// Reads a head.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut lines = text.split("\r\n");
        let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
        let version = first.next().unwrap_or_default().to_owned();
        let status = first.next().and_then(|status| status.parse().ok()).context("a head without a status")?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        Ok(Self { version, status, headers, text })
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A language whose own HTTP client is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// urllib.
    Python,
    /// The http module.
    Node,
    /// `java.net.http`, on IPv6 sockets also for IPv4.
    Java,
}

impl Language {
    /// The languages that this machine has.
    pub fn installed() -> Vec<Self> {
        [Self::Python, Self::Node, Self::Java].into_iter().filter(|language| language.is_installed()).collect()
    }

    /// A program that GETs `url` and prints the status, a newline, and the body.
    pub fn get(self, bed: &TestBed, url: &str) -> Result<Command> {
        let (program, file, source) = self.source();
        let path = bed.dir().join(file);
        std::fs::write(&path, source)?;
        Ok(bed.client_command(program)?.arg(path).arg(url).patience(Duration::from_secs(60)))
    }

    fn is_installed(self) -> bool {
        // A Java without its compiler cannot run a source file.
        let arguments = match self {
            Self::Java => ["--describe-module", "jdk.compiler"].as_slice(),
            Self::Python | Self::Node => ["--version"].as_slice(),
        };
        let status =
            StdCommand::new(self.source().0).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    fn source(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Python => ("python3", "get.py", include_str!("clients/get.py")),
            Self::Node => ("node", "get.js", include_str!("clients/get.js")),
            Self::Java => ("java", "Get.java", include_str!("clients/Get.java")),
        }
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
