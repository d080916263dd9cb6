//! The harness of the integration tests: a machine in miniature, built for one test and removed after it.
//!
//! ```text
//!   client netns ("the pod") --eth0--+            curl, python, node, java, the odd sockets of `bin/client`
//!                                    |
//!                                 origin netns    nginx or the embedded origin on 443, a tripwire on 80
//!                                    |
//!   node netns ----------------eth0--+            the agent under test
//! ```
//!
//! No namespace has a route out of the machine: addresses come from the documentation ranges, and there is no default
//! route. Everything carries the pid and the test's name, and is removed on drop, also when a test panics.
//! `EGRESS_TEST_KEEP=1` keeps it and prints how to look inside.
//!
//! The modules, in the order in which a test meets them:
pub mod testbed;

pub mod cgroup;
pub mod netns;
pub mod pki;
pub mod topology;

pub mod capture;
pub mod dns;
pub mod nginx;
pub mod openssl;
pub mod origin;
pub mod raw_server;
pub mod tripwire;
pub mod udp;

pub mod agent;
pub mod clients;
pub mod process;
pub mod proxy_status;

pub mod link;
pub mod wait;

pub use testbed::TestBed;
