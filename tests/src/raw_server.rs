//! A server of bare TCP, for origins that do not even speak TLS as they should.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Hands each connection to a function, on a thread of its own.
#[derive(Debug)]
pub struct RawServer {
    listeners: Vec<TcpListener>,
    threads: Vec<JoinHandle<()>>,
}

impl RawServer {
    /// Listens on `addresses` in `netns`.
    pub fn start(
        netns: &Netns,
        addresses: &[SocketAddr],
        serve: impl Fn(TcpStream) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listeners = netns.run(|| {
            let bind = |address: &SocketAddr| {
                TcpListener::bind(address).with_context(|| format!("the server cannot listen on {address}"))
            };
            addresses.iter().map(bind).collect::<Result<Vec<_>>>()
        })?;
        let serve = Arc::new(serve);
        let mut server = Self { listeners, threads: Vec::new() };
        for listener in &server.listeners {
            let (listener, serve) = (listener.try_clone()?, Arc::clone(&serve));
            server.threads.push(thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    let serve = Arc::clone(&serve);
                    thread::spawn(move || drop(serve(stream)));
                }
            }));
        }
        Ok(server)
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // SAFETY: no memory is involved. On a listening socket this ends `accept` with EINVAL.
            unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) };
        }
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}
