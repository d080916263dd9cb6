//! As much of IP and TCP as counting needs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Packet;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A TCP segment.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Who sent it.
    pub from: SocketAddr,
    /// Who is to receive it.
    pub to: SocketAddr,
    /// The sequence number of its first byte.
    pub sequence: u32,
    /// The sequence number that its sender expects next.
    pub acknowledged: u32,
    /// Whether it opens a connection.
    pub syn: bool,
    /// Whether it acknowledges something: with `syn`, the answer to an opening.
    pub ack: bool,
    /// Whether its sender has nothing more to send.
    pub fin: bool,
    /// Whether it resets a connection.
    pub rst: bool,
    /// The data.
    pub payload: Vec<u8>,
}

impl Segment {
    /// The segment in a packet, if there is one.
    pub(super) fn parse(packet: &Packet) -> Option<Self> {
        let ip = Ip::parse(&packet.bytes)?;
        if ip.protocol != TCP {
            return None;
        }
        let (from, to) = ip.ends()?;
        let header = 4 * usize::from(ip.payload.get(12)? >> 4);
        let flags = *ip.payload.get(13)?;
        Some(Self {
            from,
            to,
            sequence: u32::from_be_bytes(ip.payload.get(4..8)?.try_into().ok()?),
            acknowledged: u32::from_be_bytes(ip.payload.get(8..12)?.try_into().ok()?),
            syn: flags & 0x02 != 0,
            ack: flags & 0x10 != 0,
            fin: flags & 0x01 != 0,
            rst: flags & 0x04 != 0,
            payload: ip.payload.get(header..)?.to_vec(),
        })
    }
}

/// The two ends of a TCP or UDP packet.
pub(super) fn ends(packet: &Packet) -> Option<(SocketAddr, SocketAddr)> {
    Ip::parse(&packet.bytes).filter(|ip| [TCP, UDP].contains(&ip.protocol))?.ends()
}

struct Ip<'a> {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    payload: &'a [u8],
}

impl<'a> Ip<'a> {
    /// Extension headers of IPv6 are not followed: TCP and UDP of these tests have none.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header = 4 * usize::from(bytes[0] & 0x0f);
                let address = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
                    Some(Ipv4Addr::from(octets).into())
                };
                let length = usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
                let payload = bytes.get(header..length)?;
                Some(Self { from: address(12)?, to: address(16)?, protocol: *bytes.get(9)?, payload })
            }
            6 => {
                let address = |at: usize| -> Option<IpAddr> {
                    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
                    Some(Ipv6Addr::from(octets).into())
                };
                let length = usize::from(u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?));
                let payload = bytes.get(40..40 + length)?;
                Some(Self { from: address(8)?, to: address(24)?, protocol: *bytes.get(6)?, payload })
            }
            _ => None,
        }
    }

    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let port = |at: usize| Some(u16::from_be_bytes(self.payload.get(at..at + 2)?.try_into().ok()?));
        Some((SocketAddr::new(self.from, port(0)?), SocketAddr::new(self.to, port(2)?)))
    }
}
