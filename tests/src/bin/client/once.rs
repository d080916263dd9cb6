//! Requests that must not be sent twice.

use std::{
    io::{self, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::Result;

use crate::{request::read_response, target::Target};

/// Sends `count` POST requests, each to a path of its own and with the same number for content, on so many connections, each for as long as it lasts. Prints a line for
/// each: the number, and the status; `-` for what was not answered.
pub(crate) fn once(mut target: Target, host: &str, count: usize, clients: usize) -> Result<()> {
    target.quiet = true;
    let (target, next) = (&target, &AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(move || {
                let mut kept = None;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let status = post(target, host, number, &mut kept).unwrap_or_else(|_| "-".to_owned());
                    println!("{number} {status}");
                }
            });
        }
    });
    Ok(io::stdout().flush()?)
}

fn post(target: &Target, host: &str, number: usize, kept: &mut Option<TcpStream>) -> Result<String> {
    let bytes = format!("POST /{number} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 8\r\n\r\n{number:08}");
    let mut stream = match kept.take() {
        Some(mut stream) => {
            stream.write_all(bytes.as_bytes())?;
            stream
        }
        None => target.connect(bytes.as_bytes())?,
    };
    let response = read_response(&mut stream)?;
    let text = String::from_utf8_lossy(&response).to_ascii_lowercase();
    if !text.contains("\r\nconnection: close\r\n") {
        *kept = Some(stream);
    }
    Ok(text.get(9..12).unwrap_or_default().to_owned())
}
