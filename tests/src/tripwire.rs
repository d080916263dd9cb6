//! A listener on port 80 that should never hear anything.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail};

use crate::{
    netns::Netns,
    process::lock,
    wait::{PATIENCE, wait_until},
};

/// Listens in clear and records every connection and every byte.
#[derive(Debug)]
pub struct Tripwire {
    netns: std::fs::File,
    listeners: Vec<TcpListener>,
    threads: Vec<JoinHandle<()>>,
    touches: Arc<Mutex<Vec<Touch>>>,
}

/// One connection that should not have been.
#[derive(Clone, Debug)]
pub struct Touch {
    /// Who came.
    pub client: SocketAddr,
    /// To which address.
    pub server: SocketAddr,
    /// What was sent in clear, as far as it came.
    pub bytes: Vec<u8>,
}

impl Tripwire {
    /// Listens on `addresses` in `netns`.
    pub fn start(netns: &Netns, addresses: &[SocketAddr]) -> Result<Self> {
        let listeners = netns.run(|| {
            let bind = |address: &SocketAddr| {
                TcpListener::bind(address).with_context(|| format!("the tripwire cannot listen on {address}"))
            };
            addresses.iter().map(bind).collect::<Result<Vec<_>>>()
        })?;
        let mut tripwire =
            Self { netns: netns.try_clone_handle()?, listeners, threads: Vec::new(), touches: Arc::default() };
        for listener in &tripwire.listeners {
            let (listener, touches) = (listener.try_clone()?, Arc::clone(&tripwire.touches));
            tripwire.threads.push(thread::spawn(move || accept(&listener, &touches)));
        }
        Ok(tripwire)
    }

    /// What touched it so far.
    pub fn touches(&self) -> Result<Vec<Touch>> {
        // Connections are accepted in their order. When one of our own has come through, so has whatever came before it.
        let mut own = Vec::new();
        for listener in &self.listeners {
            let address = listener.local_addr()?;
            let stream = self.connect(address)?;
            own.push((stream.local_addr()?, stream));
        }
        let seen = |touches: &[Touch], address| touches.iter().any(|touch| touch.client == address);
        wait_until("the tripwire to see the harness's own connection", PATIENCE, || {
            let touches = lock(&self.touches);
            own.iter().all(|(address, _)| seen(&touches, *address))
        })?;
        let mut touches = lock(&self.touches);
        touches.retain(|touch| own.iter().all(|(address, _)| touch.client != *address));
        Ok(touches.clone())
    }

    /// Fails if anything ever touched it.
    pub fn assert_silent(&self) -> Result<()> {
        let touches = self.touches()?;
        if let Some(touch) = touches.first() {
            bail!(
                "{} connection(s) in clear; the first from {} to {}: {:?}",
                touches.len(),
                touch.client,
                touch.server,
                String::from_utf8_lossy(&touch.bytes)
            );
        }
        Ok(())
    }

    fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        thread::scope(|scope| {
            let connect = || -> Result<TcpStream> {
                nix::sched::setns(&self.netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
                Ok(TcpStream::connect(address)?)
            };
            scope.spawn(connect).join().expect("connecting does not panic")
        })
    }
}

impl Drop for Tripwire {
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

fn accept(listener: &TcpListener, touches: &Arc<Mutex<Vec<Touch>>>) {
    let Ok(server) = listener.local_addr() else { return };
    while let Ok((stream, client)) = listener.accept() {
        lock(touches).push(Touch { client, server, bytes: Vec::new() });
        let touches = Arc::clone(touches);
        thread::spawn(move || drop(record(stream, client, &touches)));
    }
}

/// Records what is said, and answers so that a leak also shows at the client.
fn record(mut stream: TcpStream, client: SocketAddr, touches: &Mutex<Vec<Touch>>) -> std::io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    stream.set_read_timeout(Some(PATIENCE))?;
    while let count @ 1.. = stream.read(&mut buffer)? {
        if let Some(touch) = lock(touches).iter_mut().rev().find(|touch| touch.client == client) {
            touch.bytes.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(b"HTTP/1.1 418 Tripwire\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    }
    Ok(())
}
