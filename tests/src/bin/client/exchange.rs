//! What is said over a socket, command by command.

use std::{
    io::{self, BufRead, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Barrier,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, setrlimit};
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};

use crate::{
    PATIENCE,
    request::{Request, read_response},
    target::Target,
};

pub(crate) fn http(target: &Target, request: &Request, count: usize, other_host: &str) -> Result<()> {
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

pub(crate) fn hold(target: &Target, request: &Request, count: usize) -> Result<()> {
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

pub(crate) fn forget(target: &Target) -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    target.connect(&bytes).map(drop)
}

pub(crate) fn crowd(target: &Target, hosts: &[String], clients: usize, count: usize) -> Result<()> {
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

/// How long a connection on which nothing comes is not accepted (TCP_DEFER_ACCEPT), and some more.
const DEFERRED: Duration = Duration::from_millis(1300);

pub(crate) fn throng(target: &Target, request: &Request, clients: usize) -> Result<()> {
    allow_sockets(clients)?;
    let sockets = (0..clients).map(|_| target.open()).collect::<Result<Vec<_>>>()?;
    let connected: Vec<_> = sockets.iter().map(|socket| socket.connect(&target.address().into())).collect();
    thread::sleep(DEFERRED);
    for (socket, connected) in sockets.into_iter().zip(connected) {
        let mut stream = TcpStream::from(socket);
        let asked = connected.and_then(|()| stream.write_all(&request.bytes(true))).context("not sent");
        let asked = asked.and_then(|()| read_response(&mut stream));
        match asked {
            Ok(response) => println!("{}", String::from_utf8_lossy(response.get(9..12).unwrap_or_default())),
            Err(error) => println!("{error:#}"),
        }
    }
    Ok(())
}

/// Allows as many sockets as that, and what else there is. A machine may allow fewer, but not root.
fn allow_sockets(count: usize) -> Result<()> {
    let limit = count as u64 + 64;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?)
}

pub(crate) fn pend(target: &Target, count: usize) -> Result<()> {
    allow_sockets(count)?;
    loop {
        let connecting: Vec<_> = (0..count).map(|_| pending(target)).collect::<Result<_>>()?;
        println!("connecting");
        if io::stdin().lock().read_line(&mut String::new())? == 0 {
            return Ok(());
        }
        drop(connecting);
    }
}

fn pending(target: &Target) -> Result<Socket> {
    /// A filter that lets nothing in: it returns 0 bytes of whatever comes (`BPF_RET`).
    const NOTHING: SockFilter = SockFilter::new(6, 0, 0, 0);
    let socket = target.open()?;
    socket.attach_filter(&[NOTHING])?;
    socket.set_nonblocking(true)?;
    match socket.connect(&target.address().into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        other => bail!("connected to {}: {other:?}", target.address()),
    }
}

pub(crate) fn queue(addresses: &[SocketAddr], request: &Request, port: u16, count: u16) -> Result<()> {
    allow_sockets(count.into())?;
    let connect = |(port, address): (u16, &SocketAddr)| {
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
        let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        socket.bind(&SocketAddr::new(any, port).into()).with_context(|| format!("binding port {port}"))?;
        socket.connect(&(*address).into()).with_context(|| format!("connecting from port {port}"))?;
        Ok(TcpStream::from(socket))
    };
    let connected =
        (port..).zip(addresses.iter().cycle()).take(count.into()).map(connect).collect::<Result<Vec<_>>>()?;
    println!("connected");
    io::stdin().lock().read_line(&mut String::new())?;
    connected.iter().try_for_each(|mut stream| stream.write_all(&request.bytes(true)))?;
    for mut stream in connected {
        let response = read_response(&mut stream)?;
        let text = String::from_utf8_lossy(&response);
        let (head, body) = text.split_once("\r\n\r\n").context("half a head")?;
        println!("{} {}", head.get(9..12).unwrap_or_default(), body.trim_end());
    }
    Ok(())
}

pub(crate) fn raw(target: &Target, half_close: bool) -> Result<()> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes)?;
    let mut stream = target.connect(&bytes)?;
    if half_close {
        stream.shutdown(std::net::Shutdown::Write)?;
    }
    io::copy(&mut stream, &mut io::stdout())?;
    Ok(())
}

pub(crate) fn talk(target: &Target, reset: bool) -> Result<()> {
    let mut stream = target.connect(&[])?;
    let mut writer = stream.try_clone()?;
    if reset {
        SockRef::from(&writer).set_linger(Some(Duration::ZERO))?;
    }
    let sending = thread::spawn(move || {
        io::copy(&mut io::stdin(), &mut writer)?;
        if reset {
            std::process::exit(0);
        }
        writer.shutdown(std::net::Shutdown::Write)
    });
    let mut stdout = io::stdout();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => stdout.write_all(&buffer[..count])?,
            // It was stopped meanwhile: that ends what has a timeout (signal(7)).
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        stdout.flush()?;
    }
    Ok(sending.join().expect("no panic")?)
}

pub(crate) fn listen(address: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into()).context("bind")?;
    socket.listen(1).context("listen")?;
    println!("listening");
    Ok(())
}

pub(crate) fn udp(address: SocketAddr, text: &str) -> Result<()> {
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
