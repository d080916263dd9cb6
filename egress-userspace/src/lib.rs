//! egress: a transparent, TLS-originating egress proxy; one agent for each node.
//!
//! The modules in the order in which data flows through them:
//! - [`config`]: files and directories of Istio resources, read strictly.
//! - [`policy`]: what they ask for together; pure, and nothing left to check.
//! - [`resolve`]: names to addresses, as the node resolves them.
//! - [`kernel`]: the eBPF programs and maps, and nobody else's.
//! - [`netns`]: network namespaces and how to work inside them.
//! - [`socket`]: the one factory of sockets.
//! - [`route`]: the policy in the form that requests need.
//! - [`check`]: what all of the above would make of a configuration, in words, and what origins make of it.
//! - [`capture`]: which connections are redirected.
//! - [`limits`]: what is taken of applications.
//! - [`listener`]: accepted connections and where they were going.
//! - [`conversation`]: a client's connection from the first request to the last.
//! - [`head`]: heads of messages, with fields as they were written.
//! - [`http1`]: HTTP/1.1 as a forwarder needs it.
//! - [`http2`]: HTTP/2 as one needs it, to origins and from applications that begin with it.
//! - [`request`]: which rule a request falls under, and its exchange with the origin.
//! - [`body`]: bodies on their way through.
//! - [`upstream`]: connections to origins, TLS, and the pool.
//! - [`passthrough`]: connections of which only the port is known.
//! - [`drain`]: how their connections are brought to an end.
//! - [`worker`]: the threads that the above run on.
//! - [`memory`]: goes back to the system when it is free.
//! - [`telemetry`]: the access log and the counters.
//! - [`watch`]: notices changed files.
//! - [`again`]: when what has failed is tried again.
//! - [`admin`]: readiness and metrics over HTTP.
//! - [`existing`]: connections that were made too early.
//! - [`self_test`]: sees whether connects are intercepted.
//! - [`handover`]: listening sockets go from one agent to the next.
//! - [`agent`]: wires all of it together on the control thread.

pub mod admin;
pub mod again;
pub mod agent;
pub mod body;
pub mod capture;
pub mod check;
pub mod config;
pub mod conversation;
pub mod drain;
pub mod existing;
pub mod handover;
pub mod head;
pub mod http1;
pub mod http2;
pub mod kernel;
pub mod limits;
pub mod listener;
pub mod memory;
pub mod netns;
pub mod passthrough;
pub mod policy;
pub mod request;
pub mod resolve;
pub mod route;
pub mod self_test;
pub mod socket;
pub mod telemetry;
pub mod upstream;
pub mod watch;
pub mod worker;
