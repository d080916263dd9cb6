//! Benchmarks: one subcommand and one module each.
//!
//! They set up what they measure in network namespaces and cgroups of their own, as the integration tests do, print a
//! table, and end by themselves. `cargo xtask bench NAME` builds everything with optimisations and runs one.

mod intercept;
mod namespaces;
mod policy;
mod proxy;
mod statistics;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures egress.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", max_term_width = 100)]
struct Options {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    Intercept(intercept::Options),
    Namespaces(namespaces::Options),
    Policy(policy::Options),
    Proxy(proxy::Options),
    /// The part of `intercept` that is a process of its own.
    #[command(hide = true)]
    InterceptProbe(intercept::probe::Options),
    /// The client of `proxy`, which is a process of its own.
    #[command(hide = true)]
    ProxyLoad(proxy::load::Options),
}

fn main() -> Result<()> {
    match Options::parse().benchmark {
        Benchmark::Intercept(options) => options.run(),
        Benchmark::Namespaces(options) => options.run(),
        Benchmark::Policy(options) => options.run(),
        Benchmark::Proxy(options) => options.run(),
        Benchmark::InterceptProbe(options) => options.run(),
        Benchmark::ProxyLoad(options) => options.run(),
    }
}
