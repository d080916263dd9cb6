//! A client with sockets that curl cannot be told to use. It is a program of its own since it must be inside the cgroup
//! before it makes a socket.
//!
//! What the socket is goes to standard error, one `key value` a line: `peername`, `sockname`, `protocol`.

use std::{
    fs::File,
    io::{self, BufRead, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    sync::Barrier,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Parser)]
#[command(about = "A client with unusual sockets")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sends one request or several on one connection, and prints the responses.
    Http {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        request: Request,
        /// How many requests on the connection.
        #[arg(long, default_value_t = 1)]
        count: usize,
        /// The Host header of every second request.
        #[arg(long)]
        other_host: Option<String>,
    },
    /// Connects, prints `connected`, and sends the request when a line comes on standard input.
    Hold {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        request: Request,
        /// How many requests on the connection, each when a line comes.
        #[arg(long, default_value_t = 1)]
        count: usize,
    },
    /// Sends standard input and closes at once, without reading.
    Forget {
        #[command(flatten)]
        target: Target,
    },
    /// Many clients at once, all connected before the first of them sends. Each wants one of the hosts, and prints for
    /// each of its responses a line: the host that it wanted, the status, and the body.
    Crowd {
        #[command(flatten)]
        target: Target,
        /// The hosts.
        #[arg(long)]
        host: Vec<String>,
        /// How many clients.
        #[arg(long, default_value_t = 100)]
        clients: usize,
        /// How many requests on each connection.
        #[arg(long, default_value_t = 3)]
        count: usize,
    },
    /// Sends standard input and prints whatever comes until the other end closes.
    Raw {
        #[command(flatten)]
        target: Target,
        /// Closes the sending side after standard input.
        #[arg(long)]
        half_close: bool,
    },
    /// Sends standard input as it comes, and prints what comes back until the other end closes.
    Talk {
        #[command(flatten)]
        target: Target,
    },
    /// Connects and says what it is connected to.
    Connect {
        #[command(flatten)]
        target: Target,
    },
    /// Requests on a new connection each, until standard input closes; prints a status or an error for each.
    Repeat {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        request: Request,
    },
    /// Listens on an address, with every socket option that lets sockets share a port.
    Listen { address: SocketAddr },
    /// Connects a UDP socket, sends a datagram, and prints the answer.
    Udp { address: SocketAddr, text: String },
}

#[derive(Args)]
struct Request {
    /// The Host header.
    #[arg(long, default_value = "edition.cnn.com")]
    host: String,
    /// The target.
    #[arg(long, default_value = "/politics")]
    path: String,
}

#[derive(Args)]
struct Target {
    /// Where to.
    address: SocketAddr,
    /// A Multipath TCP socket.
    #[arg(long)]
    mptcp: bool,
    /// An IPv6 socket, with an IPv4 address mapped.
    #[arg(long)]
    mapped: bool,
    /// Connects by sending the first bytes (MSG_FASTOPEN).
    #[arg(long)]
    fastopen: bool,
    /// Connects without blocking, and waits by poll.
    #[arg(long)]
    nonblocking: bool,
    /// Connects the same socket to this address first, which must refuse.
    #[arg(long)]
    after_refusal_by: Option<SocketAddr>,
    /// Connects the same socket to this address first, and dissolves that connection by a connect to AF_UNSPEC.
    #[arg(long)]
    after_leaving: Option<SocketAddr>,
    /// The source address.
    #[arg(long)]
    bind: Option<IpAddr>,
    /// The network device.
    #[arg(long)]
    device: Option<String>,
    /// Enters this network namespace right before it makes the socket.
    #[arg(long)]
    netns: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Http { target, request, count, other_host } => {
            let host = request.host.clone();
            http(&target, &request, count, &other_host.unwrap_or(host))
        }
        Command::Hold { target, request, count } => hold(&target, &request, count),
        Command::Forget { target } => forget(&target),
        Command::Crowd { target, host, clients, count } => crowd(&target, &host, clients, count),
        Command::Raw { target, half_close } => raw(&target, half_close),
        Command::Talk { target } => talk(&target),
        Command::Connect { target } => target.connect(&[]).map(drop),
        Command::Repeat { target, request } => repeat(&target, &request),
        Command::Listen { address } => listen(address),
        Command::Udp { address, text } => udp(address, &text),
    }
}

fn http(target: &Target, request: &Request, count: usize, other_host: &str) -> Result<()> {
    let mut stream = target.connect(&request.bytes(count == 1))?;
    for done in 1..=count {
        if done > 1 {
            let host = if done % 2 == 0 { other_host } else { &request.host };
            stream.write_all(&request.bytes_for(host, done == count))?;
        }
        io::stdout().write_all(&read_response(&mut stream)?)?;
    }
    Ok(())
}

fn hold(target: &Target, request: &Request, count: usize) -> Result<()> {
    let mut stream = target.connect(&[])?;
    println!("connected");
    for done in 1..=count {
        io::stdin().lock().read_line(&mut String::new())?;
        stream.write_all(&request.bytes(done == count))?;
        io::stdout().write_all(&read_response(&mut stream)?)?;
        io::stdout().flush()?;
    }
    Ok(())
}

fn forget(target: &Target) -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    target.connect(&bytes).map(drop)
}

fn crowd(target: &Target, hosts: &[String], clients: usize, count: usize) -> Result<()> {
    let connected = Barrier::new(clients);
    let member = |host: &str| -> Result<()> {
        let socket = target.open()?;
        let result = socket.connect(&target.address().into());
        connected.wait();
        result.context("connect")?;
        let mut stream = TcpStream::from(socket);
        let request = Request { host: host.to_owned(), path: "/crowd".to_owned() };
        for done in 1..=count {
            stream.write_all(&request.bytes(done == count))?;
            let response = read_response(&mut stream)?;
            let text = String::from_utf8_lossy(&response);
            let (head, body) = text.split_once("\r\n\r\n").context("half a head")?;
            println!("{host} {} {}", head.get(9..12).unwrap_or_default(), body.trim_end());
        }
        Ok(())
    };
    thread::scope(|scope| {
        let members: Vec<_> = hosts.iter().cycle().take(clients).map(|host| scope.spawn(|| member(host))).collect();
        members.into_iter().try_for_each(|member| member.join().expect("a client does not panic"))
    })
}

fn raw(target: &Target, half_close: bool) -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    let mut stream = target.connect(&bytes)?;
    if half_close {
        stream.shutdown(std::net::Shutdown::Write)?;
    }
    io::copy(&mut stream, &mut io::stdout())?;
    Ok(())
}

fn talk(target: &Target) -> Result<()> {
    let mut stream = target.connect(&[])?;
    let mut writer = stream.try_clone()?;
    let sending = thread::spawn(move || {
        io::copy(&mut io::stdin(), &mut writer)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut stdout = io::stdout();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => stdout.write_all(&buffer[..count])?,
        }
        stdout.flush()?;
    }
    Ok(sending.join().expect("no panic")?)
}

fn repeat(target: &Target, request: &Request) -> Result<()> {
    let (closed, asked) = std::sync::mpsc::channel::<()>();
    thread::spawn(move || {
        io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
        drop(closed);
    });
    while asked.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
        let response = target.open().and_then(|socket| {
            socket.connect(&target.address().into())?;
            let mut stream = TcpStream::from(socket);
            stream.write_all(&request.bytes(true))?;
            read_response(&mut stream)
        });
        match response {
            Ok(response) => println!("{}", String::from_utf8_lossy(response.get(9..12).unwrap_or_default())),
            Err(error) => println!("{error:#}"),
        }
    }
    Ok(())
}

fn listen(address: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into()).context("bind")?;
    socket.listen(1).context("listen")?;
    println!("listening");
    Ok(())
}

fn udp(address: SocketAddr, text: &str) -> Result<()> {
    let unspecified: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((unspecified, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address).context("connect")?;
    eprintln!("peername {}", socket.peer_addr()?);
    socket.send(text.as_bytes()).context("send")?;
    let mut buffer = [0; 64 * 1024];
    let count = socket.recv(&mut buffer).context("recv")?;
    io::stdout().write_all(&buffer[..count])?;
    Ok(())
}

impl Request {
    fn bytes(&self, last: bool) -> Vec<u8> {
        self.bytes_for(&self.host, last)
    }

    fn bytes_for(&self, host: &str, last: bool) -> Vec<u8> {
        let close = if last { "Connection: close\r\n" } else { "" };
        format!("GET {} HTTP/1.1\r\nHost: {host}\r\nX-Odd-Case: kept\r\n{close}\r\n", self.path).into_bytes()
    }
}

impl Target {
    fn address(&self) -> SocketAddr {
        self.mapped(self.address)
    }

    /// The address in the form that the socket takes.
    fn mapped(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(v4) if self.mapped => (v4.to_ipv6_mapped(), address.port()).into(),
            _ => address,
        }
    }

    fn open(&self) -> Result<Socket> {
        if let Some(netns) = &self.netns {
            setns(File::open(netns).context("opening the namespace")?, CloneFlags::CLONE_NEWNET).context("setns")?;
        }
        let address = self.address();
        let protocol = if self.mptcp { Protocol::MPTCP } else { Protocol::TCP };
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)).context("socket")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        if let Some(device) = &self.device {
            socket.bind_device(Some(device.as_bytes())).context("SO_BINDTODEVICE")?;
        }
        if let Some(source) = self.bind {
            socket.bind(&self.mapped(SocketAddr::new(source, 0)).into()).context("bind")?;
        }
        Ok(socket)
    }

    /// Connects, sends the first bytes, and says to whom.
    fn connect(&self, first: &[u8]) -> Result<TcpStream> {
        let socket = self.open()?;
        let mut rest = first;
        if let Some(refusing) = self.after_refusal_by {
            match socket.connect(&self.mapped(refusing).into()) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                other => bail!("{refusing} should have refused: {other:?}"),
            }
        }
        if let Some(left) = self.after_leaving {
            socket.connect(&self.mapped(left).into()).context("connect")?;
            eprintln!("left {}", socket.peer_addr()?.as_socket().context("no address")?);
            disconnect(&socket)?;
        }
        if self.nonblocking {
            connect_by_poll(&socket, self.address())?;
        } else if self.fastopen {
            let sent = send_fastopen(&socket, self.address(), first)?;
            rest = &first[sent..];
        } else {
            socket.connect(&self.address().into()).context("connect")?;
        }
        let protocol = socket.protocol()?.map_or(0, i32::from);
        let mut stream = TcpStream::from(socket);
        eprintln!("peername {}\nsockname {}\nprotocol {protocol}", stream.peer_addr()?, stream.local_addr()?);
        stream.write_all(rest)?;
        Ok(stream)
    }
}

fn connect_by_poll(socket: &Socket, address: SocketAddr) -> Result<()> {
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => bail!("connect should be in progress: {other:?}"),
    }
    let mut polled = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, as announced.
    if unsafe { libc::poll(&raw mut polled, 1, PATIENCE.as_millis() as libc::c_int) } != 1 {
        bail!("the connect does not end");
    }
    if let Some(error) = socket.take_error()? {
        return Err(error).context("connect");
    }
    Ok(socket.set_nonblocking(false)?)
}

fn disconnect(socket: &Socket) -> Result<()> {
    // SAFETY: sockaddr is plain data, for which zeroes are a valid value: AF_UNSPEC.
    let unspecified: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of_val(&unspecified) as libc::socklen_t;
    // SAFETY: the address has the announced length.
    if unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, length) } != 0 {
        return Err(io::Error::last_os_error()).context("connect to AF_UNSPEC");
    }
    Ok(())
}

fn send_fastopen(socket: &Socket, address: SocketAddr, bytes: &[u8]) -> Result<usize> {
    let address = socket2::SockAddr::from(address);
    // SAFETY: buffer and address are valid for the announced lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_FASTOPEN,
            address.as_ptr().cast(),
            address.len(),
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error()).context("sendto with MSG_FASTOPEN")
}

/// Reads one response with a `Content-Length`, or up to the end.
fn read_response(stream: &mut TcpStream) -> Result<Vec<u8>> {
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
