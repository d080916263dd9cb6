//! A name server whose answers a test words as it likes (RFC 1035 section 4).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use crate::netns::Netns;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
const TYPE_OPT: u16 = 41;
const CLASS_IN: u16 = 1;
const TTL: u32 = 60;

/// Answers over UDP in a thread of its own.
#[derive(Debug)]
pub struct DnsServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Serves port 53 of `address` in `netns`. A question that `answer` has no answer to gets none.
    pub fn start(
        netns: &Netns,
        address: IpAddr,
        answer: impl Fn(&Question) -> Option<Answer> + Send + 'static,
    ) -> Result<Self> {
        let socket = netns.run(|| Ok(UdpSocket::bind((address, 53))?))?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((count, client)) = socket.recv_from(&mut buffer) else { continue };
                let Some(question) = Question::parse(&buffer[..count], client) else { continue };
                if let Some(answer) = answer(&question) {
                    socket.send_to(&answer.message(&question), client).ok();
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// What a client asks.
#[derive(Debug)]
pub struct Question {
    /// Who asks.
    pub client: SocketAddr,
    /// The name as it was sent, without a dot at the end.
    pub name: String,
    kind: u16,
    /// The query up to the end of its question.
    bytes: Vec<u8>,
}

impl Question {
    fn parse(query: &[u8], client: SocketAddr) -> Option<Self> {
        let mut labels = Vec::new();
        let mut at = HEADER;
        loop {
            let length = usize::from(*query.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(query.get(at..at + length)?).into_owned());
            at += length;
        }
        let kind = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
        Some(Self { client, name: labels.join("."), kind, bytes: query.get(..at + 4)?.to_vec() })
    }

    /// Whether it asks for addresses of IPv6.
    pub fn is_v6(&self) -> bool {
        self.kind == TYPE_AAAA
    }

    /// Whether it asks for this name, in whatever case.
    pub fn is_for(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// What a server answers.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    addresses: Vec<IpAddr>,
    aliases: Vec<String>,
    /// The response code (RFC 1035 section 4.1.1).
    code: u8,
    uncompressed: bool,
    unasked: bool,
    edns: bool,
    ttl: Option<u32>,
}

impl Answer {
    /// That the name has these addresses. Those of the family that was not asked for are left out.
    pub fn addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { addresses: addresses.into_iter().collect(), ..Self::default() }
    }

    /// That there is no such name.
    pub fn nonexistent() -> Self {
        Self { code: 3, ..Self::default() }
    }

    /// That it cannot say (SERVFAIL).
    pub fn failure() -> Self {
        Self { code: 2, ..Self::default() }
    }

    /// That the name is an alias of this one, which is what has the addresses; or is an alias itself, of the next.
    #[must_use]
    pub fn alias(mut self, name: &str) -> Self {
        self.aliases.push(name.to_owned());
        self
    }

    /// With this TTL, in seconds, in place of a minute.
    #[must_use]
    pub fn ttl(mut self, ttl: u32) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Does not repeat the question.
    #[must_use]
    pub fn unasked(mut self) -> Self {
        self.unasked = true;
        self
    }

    /// Writes every name in full, rather than to point to where the message has its end.
    #[must_use]
    pub fn uncompressed(mut self) -> Self {
        self.uncompressed = true;
        self
    }

    /// Adds an OPT record (RFC 6891 section 6.1) after the answers.
    #[must_use]
    pub fn edns(mut self) -> Self {
        self.edns = true;
        self
    }

    fn message(&self, question: &Question) -> Vec<u8> {
        let mut message = question.bytes[..HEADER].to_vec();
        let mut names = Names { known: BTreeMap::new(), in_full: self.uncompressed };
        if !self.unasked {
            names.put(&mut message, &question.name);
            message.extend(&question.bytes[message.len()..]);
        }
        let mut count = 0_u16;
        let mut owner = &question.name;
        let mut put = |message: &mut Vec<u8>, owner: &str, kind: u16, data: Data<'_>| {
            names.put(message, owner);
            message.extend([kind, CLASS_IN].into_iter().flat_map(u16::to_be_bytes));
            message.extend(self.ttl.unwrap_or(TTL).to_be_bytes());
            message.extend([0; 2]);
            let begin = message.len();
            match data {
                Data::Name(name) => names.put(message, name),
                Data::Bytes(bytes) => message.extend(bytes),
            }
            let length = (message.len() - begin) as u16;
            message[begin - 2..begin].copy_from_slice(&length.to_be_bytes());
            count += 1;
        };
        for alias in &self.aliases {
            put(&mut message, owner, TYPE_CNAME, Data::Name(alias));
            owner = alias;
        }
        for address in &self.addresses {
            match (address, question.kind) {
                (IpAddr::V4(v4), TYPE_A) => put(&mut message, owner, TYPE_A, Data::Bytes(&v4.octets())),
                (IpAddr::V6(v6), TYPE_AAAA) => put(&mut message, owner, TYPE_AAAA, Data::Bytes(&v6.octets())),
                _ => {}
            }
        }
        if self.edns {
            message.push(0);
            message.extend([TYPE_OPT, 4096, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes));
        }
        // A response to a recursive query.
        message[2..4].copy_from_slice(&[0x81, 0x80 | self.code]);
        let counts = [u16::from(!self.unasked), count, 0, u16::from(self.edns)];
        message[4..HEADER].copy_from_slice(&counts.map(u16::to_be_bytes).concat());
        message
    }
}

/// What a record says of a name.
enum Data<'a> {
    Name(&'a str),
    Bytes(&'a [u8]),
}

/// The names of a message, and the ends of names, by where it has them.
struct Names {
    known: BTreeMap<String, usize>,
    in_full: bool,
}

impl Names {
    fn put(&mut self, message: &mut Vec<u8>, name: &str) {
        let mut rest = name;
        while !rest.is_empty() {
            if let Some(place) = self.known.get(rest).filter(|_| !self.in_full) {
                message.extend((0xc000 | *place as u16).to_be_bytes());
                return;
            }
            self.known.insert(rest.to_owned(), message.len());
            let (label, after) = rest.split_once('.').unwrap_or((rest, ""));
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
            rest = after;
        }
        message.push(0);
    }
}
