//! Network namespaces with a name under /run/netns, so that `ip netns` and `nsenter` find them.

use std::{
    fs::{self, File},
    io::Write,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

const NAMED: &str = "/run/netns";

/// A network namespace of its own, with the loopback up and nothing else. Removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
    keep: bool,
}

impl Netns {
    /// Makes a namespace called `name`.
    pub fn create(name: &str) -> Result<Self> {
        fs::create_dir_all(NAMED).context("creating /run/netns")?;
        let path = Path::new(NAMED).join(name);
        File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
        // The bind mount needs a thread inside the new namespace; the caller's own thread must stay where it is.
        let target = path.clone();
        let made = thread::spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET): the tests need root")?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("binding the namespace to {}", target.display()))
        })
        .join()
        .expect("the thread that makes a namespace does not panic");
        if let Err(error) = made {
            fs::remove_file(&path).ok();
            return Err(error);
        }
        let handle = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let netns = Self { name: name.to_owned(), handle, keep: false };
        // Duplicate address detection delays IPv6 addresses by a second; there is nobody here to collide with.
        for setting in ["accept_dad", "accept_ra", "router_solicitations"] {
            netns.sysctl(&format!("net/ipv6/conf/default/{setting}"), "0")?;
            netns.sysctl(&format!("net/ipv6/conf/all/{setting}"), "0")?;
        }
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name under /run/netns.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that `nsenter --net=` takes.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMED).join(&self.name)
    }

    /// The open namespace, for `setns`.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// The namespace's cookie, as BPF programs see it.
    pub fn cookie(&self) -> Result<u64> {
        /// `SO_NETNS_COOKIE` of asm-generic/socket.h; the libc crate does not have it on all targets.
        const SO_NETNS_COOKIE: libc::c_int = 71;
        self.run(|| {
            use std::os::fd::AsRawFd;
            let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))?;
            let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
            // SAFETY: `cookie` has room for the eight bytes that `length` announces.
            let status = unsafe {
                libc::getsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    SO_NETNS_COOKIE,
                    (&raw mut cookie).cast(),
                    &raw mut length,
                )
            };
            if status != 0 {
                bail!("SO_NETNS_COOKIE: {}", std::io::Error::last_os_error());
            }
            Ok(cookie)
        })
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets it opens belong to the namespace for good.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("a thread inside {} panicked", self.name))?
        })
    }

    /// Moves the calling thread into the namespace, for a thread that stays there.
    pub fn enter(&self) -> Result<()> {
        setns(self.handle(), CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name))
    }

    /// Another handle on the same namespace, for a thread that outlives a borrow.
    pub fn try_clone_handle(&self) -> Result<File> {
        self.handle.try_clone().context("duplicating a namespace's descriptor")
    }

    /// Runs `ip(8)` commands in the namespace, one a line, without the leading `ip`.
    pub fn ip(&self, commands: &str) -> Result<()> {
        self.run(|| {
            let mut child = Command::new("ip")
                .args(["-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .context("running ip (package iproute2)")?;
            child.stdin.take().expect("stdin is piped").write_all(commands.as_bytes())?;
            let output = child.wait_with_output()?;
            if !output.status.success() {
                bail!("ip -batch in {}: {}\n{commands}", self.name, String::from_utf8_lossy(&output.stderr));
            }
            Ok(())
        })
    }

    /// Sets a network sysctl of the namespace, such as `net/ipv4/tcp_fastopen`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("setting {name}")))
    }

    /// The addresses that TCP sockets listen on.
    pub fn listening(&self) -> Result<Vec<SocketAddr>> {
        let tables =
            self.run(|| Ok(["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")))))?;
        // A kernel without IPv6 has no table of it.
        Ok(tables.iter().flatten().flat_map(|table| table.lines().skip(1).filter_map(listening)).collect())
    }

    /// Leaves the namespace behind on drop.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.keep {
            umount2(&self.path(), MntFlags::MNT_DETACH).ok();
            fs::remove_file(self.path()).ok();
        }
    }
}

/// The local address of a line of /proc/net/tcp, if it is one of a listening socket.
fn listening(line: &str) -> Option<SocketAddr> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (address, port) = local.split_once(':')?;
    // Words of four bytes in network order, each printed as a number.
    let words = (0..address.len() / 8).map(|at| u32::from_str_radix(&address[8 * at..8 * at + 8], 16).ok());
    let bytes = words.collect::<Option<Vec<_>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>();
    let address = <[u8; 4]>::try_from(bytes.as_slice())
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
        .ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (state == LISTEN).then(|| SocketAddr::new(address, port))
}
