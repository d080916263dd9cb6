//! What the hooks decided.

/// Declares [`Outcome`] with its metric labels.
macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// What a hook decided about one connection; the index of its counter.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Outcome {
            $($(#[$doc])* $name,)*
        }

        impl Outcome {
            /// All outcomes, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The value of the metric label `outcome`.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

outcomes! {
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
    /// Rejected: the socket is bound to a device, and could not be released to reach the listener.
    BoundToDevice = "bound_to_device",
    /// Redirected, but the flow could not be published: the listener will close the connection.
    FlowNotPublished = "flow_not_published",
}
