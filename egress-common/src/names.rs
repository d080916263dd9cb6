//! Names in the eBPF object. A test in `egress-userspace` checks that the object has each of them.

/// Maps.
pub mod map {
    /// LPM trie from [`Destination`](crate::destination::Destination) to [`Capture`](crate::destination::Capture).
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// Hash from network namespace cookie to [`ListenerPorts`](crate::listener::ListenerPorts).
    pub const LISTENERS: &str = "LISTENERS";
    /// Socket storage that marks the agent's own sockets.
    pub const OWN_SOCKETS: &str = "OWN_SOCKETS";
    /// Socket storage that holds the [`Origin`](crate::origin::Origin) of a redirected client socket.
    pub const ORIGINS: &str = "ORIGINS";
    /// Array of [`Slot`](crate::slot::Slot), which the agent maps: origins, each until its connection is accepted.
    pub const SLOTS: &str = "SLOTS";
    /// Hash from [`Flow`](crate::flow::Flow) to [`Origin`](crate::origin::Origin), likewise: those whose slot another has.
    pub const FLOWS: &str = "FLOWS";
    /// Hash from network namespace cookie to the number of its redirected sockets that are connecting.
    pub const CONNECTING: &str = "CONNECTING";
    /// Per-CPU array of counters indexed by [`Outcome`](crate::outcome::Outcome).
    pub const OUTCOMES: &str = "OUTCOMES";
    /// Ring buffer of [`ThreadSeen`](crate::listener::ThreadSeen).
    pub const THREADS_SEEN: &str = "THREADS_SEEN";
    /// Hash of the ids of the cgroups that are served.
    pub const SCOPES: &str = "SCOPES";
    /// LPM trie from [`ReversedName`](crate::learned::ReversedName) to [`NameRule`](crate::learned::NameRule): whose
    /// addresses are learned.
    pub const NAMES: &str = "NAMES";
    /// Hash from [`LearnedKey`](crate::learned::LearnedKey) to [`Learned`](crate::learned::Learned): what is intercepted
    /// besides `DESTINATIONS`.
    pub const LEARNED: &str = "LEARNED";
    /// Hash from network namespace cookie to the number of its entries in `LEARNED`.
    pub const LEARNED_COUNTS: &str = "LEARNED_COUNTS";
    /// Socket storage that holds the network namespace cookie of sockets that asked a name server.
    pub const ASKERS: &str = "ASKERS";
    /// Per-CPU array of counters indexed by [`Learning`](crate::outcome::Learning).
    pub const LEARNINGS: &str = "LEARNINGS";
    /// Per-CPU room for one DNS message.
    pub const SCRATCH: &str = "SCRATCH";

    /// Those that outlive the agent.
    pub const PINNED: [&str; 15] = [
        DESTINATIONS,
        LISTENERS,
        OWN_SOCKETS,
        ORIGINS,
        SLOTS,
        FLOWS,
        CONNECTING,
        OUTCOMES,
        THREADS_SEEN,
        SCOPES,
        NAMES,
        LEARNED,
        LEARNED_COUNTS,
        ASKERS,
        LEARNINGS,
    ];
}

/// Programs.
pub mod program {
    /// `cgroup/connect4`: redirects IPv4 sockets.
    pub const CONNECT4: &str = "connect4";
    /// `cgroup/connect6`: redirects IPv6 sockets, also those that connect to a v4-mapped address.
    pub const CONNECT6: &str = "connect6";
    /// `cgroup/getpeername4`: answers with the origin.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// `cgroup/getpeername6`: answers with the origin.
    pub const GETPEERNAME6: &str = "getpeername6";
    /// `sockops`: publishes the origin of a connection that is about to be made.
    pub const PUBLISH_ORIGIN: &str = "publish_origin";
    /// `cgroup/sendmsg4`: notes which sockets ask name servers.
    pub const SENDMSG4: &str = "sendmsg4";
    /// `cgroup/sendmsg6`: notes which sockets ask name servers.
    pub const SENDMSG6: &str = "sendmsg6";
    /// `cgroup_skb/ingress`: learns addresses from the answers that those sockets get.
    pub const LEARN_NAMES: &str = "learn_names";
    /// `cgroup/sock_create`: reports sockets in network namespaces that have no listener yet.
    pub const SOCK_CREATE: &str = "sock_create";
    /// `raw_tp/sched_process_exec`: reports programs that are started in a served cgroup. Not attached to cgroups.
    pub const PROCESS_EXEC: &str = "process_exec";

    /// Those that are attached to cgroups, in the order in which that is safe: no connect may be redirected before its
    /// origin can be published and answered, and no name be asked for before the answer is listened to.
    pub const CGROUP: [&str; 9] =
        [SOCK_CREATE, LEARN_NAMES, SENDMSG4, SENDMSG6, PUBLISH_ORIGIN, GETPEERNAME4, GETPEERNAME6, CONNECT4, CONNECT6];
}

/// The global that aya-log's macros compare their level with; 0 lets the verifier remove them.
pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
/// The global that tells the programs that the kernel can name the multipath TCP socket of a subflow.
pub const MULTIPATH: &str = "MULTIPATH";
/// The global that tells the programs that the agent knows processes by the ids of the initial pid namespace, as the kernel does.
pub const INITIAL_PIDS: &str = "INITIAL_PIDS";
