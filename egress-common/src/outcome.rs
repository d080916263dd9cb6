//! What the programs decided.

/// Declares an enumeration of counted outcomes with their metric labels.
macro_rules! counted {
    ($(#[$about:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $label:literal,)* }) => {
        $(#[$about])*
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $type {
            $($(#[$doc])* $name,)*
        }

        impl $type {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The value of the metric label.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

counted! {
    /// What a hook decided about one connection; the index of its counter.
    Outcome {
        /// Not a configured destination: left alone.
        Unmatched = "unmatched",
        /// Not TCP: left alone.
        NotTcp = "not_tcp",
        /// The agent's own socket: left alone.
        OwnSocket = "own_socket",
        /// Redirected to the agent's listener.
        Redirected = "redirected",
        /// Rejected: the agent has no listener in the socket's network namespace.
        NoListener = "no_listener",
        /// Rejected: somebody else listens where the agent should.
        ForeignListener = "foreign_listener",
        /// Rejected: the origin could not be recorded.
        OriginNotRecorded = "origin_not_recorded",
        /// Rejected: the socket is bound to a device, and could not be released to reach the listener, or be bound again afterwards.
        BoundToDevice = "bound_to_device",
        /// Redirected, but the flow could not be published: the listener will close the connection.
        FlowNotPublished = "flow_not_published",
        /// Rejected: a datagram socket that asks a name server, and whose answers could not be told from others'.
        AskerNotRecorded = "asker_not_recorded",
        /// Redirected, as the agent's test of itself.
        SelfTest = "self_test",
    }
}

counted! {
    /// What became of a DNS answer that has addresses of a configured name; the index of its counter.
    Learning {
        /// All of its addresses are intercepted from now on.
        Learned = "learned",
        /// It was kept from the application, as not all of its addresses could be learned.
        Refused = "refused",
    }
}
