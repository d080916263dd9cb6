//! Where an application was going when it was redirected, and who it was.

use crate::{address::IpBytes, map_type};

/// Length of a process name in the kernel, with its terminating zero (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// Recorded by the connect hooks before they rewrite an address; read by getpeername and, through
/// [`Flow`](crate::flow::Flow), by the listener.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// When it was recorded: nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub recorded_ns: u64,
    /// The address that the application connected to.
    pub address: IpBytes,
    /// Name of the thread that called connect; the process's own unless it names its threads.
    pub comm: [u8; COMM_LEN],
    /// Process id (thread group id) in the initial pid namespace; 0 if the agent is in another.
    pub pid: u32,
    /// Index of the device that the socket was bound to (SO_BINDTODEVICE); 0 if none.
    pub device: u32,
    /// The port that the application connected to, in network order.
    pub port: [u8; 2],
    /// Why the connection was redirected: a [`Capture`](crate::destination::Capture).
    pub capture: u8,
    /// 1 while the socket is connecting, and counted as such; 0 in a flow.
    pub connecting: u8,
    /// In a flow, 1 if it was put in the place of another that nobody had taken: one of two connections of the flow was reset while it
    /// waited to be accepted, and nobody can tell which of them this is the origin of. Else 0.
    pub ambiguous: u8,
    /// Zero; keeps the layout free of padding.
    pub reserved: [u8; 3],
}
map_type!(Origin, 8 + 16 + 16 + 4 + 4 + 2 + 1 + 1 + 1 + 3);

#[cfg(feature = "user")]
mod user {
    use std::{
        net::{IpAddr, SocketAddr},
        string::String,
    };

    use super::Origin;
    use crate::destination::Capture;

    impl Origin {
        /// Address and port that the application connected to.
        pub fn socket_addr(&self) -> SocketAddr {
            SocketAddr::new(IpAddr::from(self.address), u16::from_be_bytes(self.port))
        }

        /// Whether it may be another connection's.
        pub fn is_ambiguous(&self) -> bool {
            self.ambiguous != 0
        }

        /// Whether all that is known of the destination is its port, and not that a configured host has its address.
        pub fn by_port_alone(&self) -> bool {
            Capture::from_number(self.capture) == Some(Capture::Port)
        }

        /// The process name, with what is not UTF-8 replaced.
        pub fn process_name(&self) -> String {
            let name = self.comm.split(|&byte| byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(name).into_owned()
        }
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use super::*;
    use crate::destination::Capture;

    #[test]
    fn address_and_name_read_back() {
        let mut comm = [0; COMM_LEN];
        comm[..4].copy_from_slice(b"curl");
        let origin = Origin {
            recorded_ns: 1,
            address: IpBytes::from_v4([203, 0, 113, 7]),
            comm,
            pid: 42,
            device: 0,
            port: 80u16.to_be_bytes(),
            capture: Capture::Host as u8,
            connecting: 0,
            ambiguous: 0,
            reserved: [0; 3],
        };
        assert_eq!(origin.socket_addr(), ([203, 0, 113, 7], 80).into());
        assert_eq!(origin.process_name(), "curl");
    }
}
