//! The agent's listeners, and processes whose namespaces may lack one.

use crate::map_type;

/// The agent's listening ports in one network namespace, in network order; zero where there is none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListenerPorts {
    /// Port on 127.0.0.1.
    pub v4: [u8; 2],
    /// Port on ::1.
    pub v6: [u8; 2],
}
map_type!(ListenerPorts, 2 + 2);

/// Reported when a process in scope starts a program, and when one makes a socket in a network namespace that has no
/// listener.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ThreadSeen {
    /// The process (thread group id, initial pid namespace); 0 if the agent is in another.
    pub pid: u32,
    /// The thread: those of one process can be in different namespaces. 0 like the process.
    pub tid: u32,
}
map_type!(ThreadSeen, 4 + 4);
