//! A link with a delay. Between namespaces of one machine a round trip takes microseconds, and what round trips cost cannot
//! be seen; kernels without netem have no other way to slow a link down.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Write},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// A pair of TUN devices and a thread that carries packets from one to the other, each one `delay` later.
#[derive(Debug)]
pub struct DelayedLink {
    stop: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl DelayedLink {
    /// Makes a device at either end: namespace and device name. Addresses are the caller's to set.
    pub fn create(left: (&Netns, &str), right: (&Netns, &str), delay: Duration) -> Result<Self> {
        let left = left.0.run(|| tun(left.1))?;
        let right = right.0.run(|| tun(right.1))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let carrier = thread::spawn(move || carry(&left, &right, delay, &stopped));
        Ok(Self { stop, carrier: Some(carrier) })
    }

    /// Lets the link live as long as the process.
    pub(crate) fn keep(mut self) {
        self.carrier.take();
    }
}

impl Drop for DelayedLink {
    fn drop(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            self.stop.store(true, Ordering::Relaxed);
            carrier.join().ok();
        }
    }
}

/// Packets on their way, each with the time at which it arrives.
type InFlight = VecDeque<(Instant, Vec<u8>)>;

fn carry(left: &File, right: &File, delay: Duration, stop: &AtomicBool) {
    const LONGEST_WAIT: Duration = Duration::from_millis(50);
    let mut to_right = InFlight::new();
    let mut to_left = InFlight::new();
    let mut buffer = vec![0; 64 * 1024];
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let next = [&to_right, &to_left].into_iter().filter_map(|queue| queue.front()).map(|(due, _)| *due).min();
        let wait = next.map_or(LONGEST_WAIT, |due| due.saturating_duration_since(now)).min(LONGEST_WAIT);
        wait_readable([left, right], wait);
        receive(left, &mut to_right, delay, &mut buffer);
        receive(right, &mut to_left, delay, &mut buffer);
        deliver(&mut to_right, right);
        deliver(&mut to_left, left);
    }
}

fn receive(mut from: &File, queue: &mut InFlight, delay: Duration, buffer: &mut [u8]) {
    while let Ok(length @ 1..) = from.read(buffer) {
        queue.push_back((Instant::now() + delay, buffer[..length].to_vec()));
    }
}

fn deliver(queue: &mut InFlight, mut to: &File) {
    let now = Instant::now();
    while queue.front().is_some_and(|(due, _)| *due <= now) {
        let (_, packet) = queue.pop_front().expect("the front was just seen");
        // A packet that the device does not take is a lost packet, which TCP knows how to handle.
        to.write_all(&packet).ok();
    }
}

fn wait_readable(files: [&File; 2], wait: Duration) {
    let mut polled = files.map(|file| libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    let timeout = libc::timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
    // SAFETY: `polled` holds as many entries as announced; no signal mask is passed.
    unsafe { libc::ppoll(polled.as_mut_ptr(), 2, &raw const timeout, std::ptr::null()) };
}

/// Makes a TUN device in the namespace of the calling thread.
fn tun(name: &str) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun")?;
    // SAFETY: ifreq is plain data, for which zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        bail!("making the TUN device {name}: {}", std::io::Error::last_os_error());
    }
    Ok(file)
}
