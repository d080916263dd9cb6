//! A client with sockets that curl cannot be told to use. It is a program of its own since it must be inside the cgroup
//! before it makes a socket.
//!
//! What the socket is goes to standard error, one `key value` a line: `peername`, `sockname`, `protocol`.

mod exchange;
mod http2;
mod once;
mod repeat;
mod request;
mod target;

use std::{net::SocketAddr, process, thread, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::{request::Request, target::Target};

const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Parser)]
#[command(about = "A client with unusual sockets")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Works on a second thread, and has the first one end before.
    #[arg(long, global = true)]
    leaderless: bool,
    /// Works on a second thread, and has the first one wait.
    #[arg(long, global = true)]
    beside: bool,
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
    /// Many connections, all made before the first request is sent, and silent for as long as it takes until they are accepted nevertheless;
    /// prints for each a line: the status, or why there is none.
    Throng {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        request: Request,
        /// How many.
        #[arg(long)]
        clients: usize,
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
        /// Resets the connection at the end of standard input, rather than to close the sending side, and when it is killed.
        #[arg(long)]
        reset: bool,
    },
    /// Sends a POST over HTTP/2 with prior knowledge, and takes the content of the response only when all of its own is sent.
    Post {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value = "edition.cnn.com")]
        host: String,
        /// How much content, in bytes.
        #[arg(long)]
        length: usize,
    },
    /// Connects and says what it is connected to.
    Connect {
        #[command(flatten)]
        target: Target,
    },
    /// Makes connections that never get to their end, as nothing that comes back is let in, and says `connecting`; and does so anew
    /// whenever a line comes on standard input.
    Pend {
        #[command(flatten)]
        target: Target,
        /// How many.
        #[arg(long)]
        count: usize,
    },
    /// Connects from this port and those after it, to the addresses in turn, prints `connected`, and sends a request on each when a line
    /// comes on standard input; prints a status and the content for each.
    Queue {
        /// Where to.
        #[arg(required = true)]
        addresses: Vec<SocketAddr>,
        #[command(flatten)]
        request: Request,
        /// The first port.
        #[arg(long)]
        port: u16,
        /// How many.
        #[arg(long)]
        count: u16,
    },
    /// Requests without pause until standard input closes; prints a status or an error for each.
    Repeat {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        request: Request,
        /// Uses a connection for as long as it lasts, rather than a new one for each request.
        #[arg(long)]
        keep_alive: bool,
        /// Counts, rather than prints: each line of standard input is answered by a line of JSON, how often there was what.
        /// Begins with the first such line, and has the lowest priority, so that many keep a machine busy and not out of use.
        #[arg(long)]
        count: bool,
    },
    /// Sends POST requests, each to a path of its own and with its number for content; prints a number and a status for each.
    Once {
        #[command(flatten)]
        target: Target,
        #[arg(long, default_value = "edition.cnn.com")]
        host: String,
        /// How many.
        #[arg(long)]
        count: usize,
        /// How many connections at the same time.
        #[arg(long, default_value_t = 16)]
        clients: usize,
    },
    /// Listens on an address, with every socket option that lets sockets share a port.
    Listen { address: SocketAddr },
    /// Connects a UDP socket, sends a datagram, and prints the answer.
    Udp { address: SocketAddr, text: String },
}

fn main() -> Result<()> {
    let Cli { command, leaderless, beside } = Cli::parse();
    if !leaderless && !beside {
        return run(command);
    }
    let working = thread::spawn(move || {
        let result = run(command).inspect_err(|error| eprintln!("{error:?}"));
        process::exit(result.is_err().into());
    });
    if beside {
        working.join().expect("the command does not panic");
    }
    // SAFETY: the system call, unlike the library's function, ends this thread alone, and gives nothing free that others use.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("this thread has ended")
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Http { target, request, count, other_host } => {
            let host = request.host.clone();
            exchange::http(&target, &request, count, &other_host.unwrap_or(host))
        }
        Command::Hold { target, request, count } => exchange::hold(&target, &request, count),
        Command::Forget { target } => exchange::forget(&target),
        Command::Crowd { target, host, clients, count } => exchange::crowd(&target, &host, clients, count),
        Command::Throng { target, request, clients } => exchange::throng(&target, &request, clients),
        Command::Raw { target, half_close } => exchange::raw(&target, half_close),
        Command::Talk { target, reset } => exchange::talk(&target, reset),
        Command::Post { target, host, length } => http2::post(&target, &host, length),
        Command::Connect { target } => target.connect(&[]).map(drop),
        Command::Pend { target, count } => exchange::pend(&target, count),
        Command::Queue { addresses, request, port, count } => exchange::queue(&addresses, &request, port, count),
        Command::Repeat { target, request, keep_alive, count } => repeat::repeat(target, request, keep_alive, count),
        Command::Once { target, host, count, clients } => once::once(target, &host, count, clients),
        Command::Listen { address } => exchange::listen(address),
        Command::Udp { address, text } => exchange::udp(address, &text),
    }
}
