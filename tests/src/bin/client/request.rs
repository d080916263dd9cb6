//! Requests and responses, as plain as they can be.

use std::{io::Read, net::TcpStream};

use anyhow::{Context, Result, bail};
use clap::Args;

#[derive(Args)]
pub(crate) struct Request {
    /// The Host header.
    #[arg(long, default_value = "edition.cnn.com")]
    pub(crate) host: String,
    /// The target.
    #[arg(long, default_value = "/politics")]
    pub(crate) path: String,
}

impl Request {
    pub(crate) fn bytes(&self, last: bool) -> Vec<u8> {
        self.bytes_for(&self.host, last)
    }

    pub(crate) fn bytes_for(&self, host: &str, last: bool) -> Vec<u8> {
        let close = if last { "Connection: close\r\n" } else { "" };
        format!("GET {} HTTP/1.1\r\nHost: {host}\r\nX-Odd-Case: kept\r\n{close}\r\n", self.path).into_bytes()
    }
}
/// Reads one response with a `Content-Length`, or up to the end.
pub(crate) fn read_response(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut response = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(head) = response.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&response[..head]).to_ascii_lowercase();
            let length =
                text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            if length.is_some_and(|length| response.len() >= head + 4 + length) {
                return Ok(response);
            }
        }
        match stream.read(&mut buffer).context("read")? {
            0 if response.is_empty() => bail!("closed without a response"),
            0 => return Ok(response),
            count => response.extend_from_slice(&buffer[..count]),
        }
    }
}
