//! What came of a caller's requests.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// How often there was which status or error.
#[derive(Clone, Debug, Default)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    /// Reads what `client repeat --count` prints.
    pub fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line).map(Self).with_context(|| format!("not a tally: {line}"))
    }

    /// Adds what came of one request.
    pub fn add(&mut self, came: String) {
        *self.0.entry(came).or_default() += 1;
    }

    /// How many requests there were.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// How many were answered. The origin answers over TLS alone.
    pub fn upgraded(&self) -> u64 {
        self.0.get("200").copied().unwrap_or_default()
    }

    /// How many had their connection refused.
    pub fn refused(&self) -> u64 {
        self.0.iter().filter(|(came, _)| came.contains("Connection refused")).map(|(_, count)| count).sum()
    }

    /// Fails if the tripwire answered.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.0.contains_key("418"), "it was answered in clear: {self:?}");
        Ok(())
    }
}
