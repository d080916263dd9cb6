//! What a configuration would do, and all that is wrong with it, found without the kernel or root; and what origins make of
//! it, if that is asked for.

use std::fmt;

use serde::Serialize;

use self::probe::ProbeReport;
use crate::{
    config::{self, Diagnostic, Errors, Location, Progress, Severity, Source},
    policy::{Exception, HostName, Policy},
    upstream::tls::{Clients, Workshop},
};

pub mod probe;
mod summary;
#[cfg(test)]
mod tests;

/// What is known of a configuration. Displays as a text for people; serializes as the JSON of `--output json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What becomes of requests, in the order of host and port; empty where a document cannot be read.
    pub rules: Vec<RuleReport>,
    /// What rules for wildcards are not for, in the same order.
    pub exceptions: Vec<ExceptionReport>,
    /// What was seen of the rules' upstreams, if they were probed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Vec<ProbeReport>>,
    /// Errors and warnings in the order of files and lines.
    pub diagnostics: Vec<Finding>,
    /// How many of them are errors.
    pub errors: usize,
    /// How many of them are warnings.
    pub warnings: usize,
}

/// What becomes of requests for one port of one host.
#[derive(Debug, Serialize)]
pub struct RuleReport {
    /// The host, or a wildcard.
    pub host: String,
    /// The port that applications connect to.
    pub port: u16,
    /// Where that is written.
    pub location: Place,
    /// The routes, of which the first that a request matches counts.
    pub routes: Vec<RouteReport>,
}

/// A port of a host that is left in clear, though a rule for a wildcard has it.
#[derive(Debug, Serialize)]
pub struct ExceptionReport {
    /// The host, or a wildcard.
    pub host: String,
    /// The port that applications connect to.
    pub port: u16,
    /// Where that is written.
    pub location: Place,
}

/// A route in words.
#[derive(Debug, Serialize)]
pub struct RouteReport {
    /// The requests that it is for; all, if absent.
    pub when: Option<String>,
    /// What is done with them.
    pub then: String,
    /// Where that is written.
    pub location: Place,
}

/// A line of a file.
#[derive(Debug, Serialize)]
pub struct Place {
    /// The file.
    pub file: String,
    /// 1-based; absent when it is the file as a whole.
    pub line: Option<u32>,
}

/// An error or a warning.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Such as `EG0101`.
    pub code: &'static str,
    /// Such as `conflicting-resources`.
    pub name: &'static str,
    /// `error` or `warning`.
    pub severity: String,
    /// The line at fault.
    pub location: Place,
    /// The field at fault, if it is one.
    pub path: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Checks all sources together. `progress` has where it is while it reads.
pub fn check(sources: &[Source], progress: &Progress) -> Report {
    let (policy, diagnostics) = analyze(sources, progress);
    Report::new(&policy.unwrap_or_default(), diagnostics, None)
}

/// The same, and shakes hands with each origin that they lead to, from the caller's network namespace.
/// `names` are hosts to take for wildcards, and to resolve for `resolution: NONE`.
pub async fn check_and_probe(sources: &[Source], names: &[HostName], progress: &Progress) -> Report {
    let (policy, mut diagnostics) = analyze(sources, progress);
    // What cannot be read may be what the names are for.
    let Some(policy) = policy else { return Report::new(&Policy::default(), diagnostics, Some(Vec::new())) };
    let (probes, found) = probe::probe(&policy, names, progress).await;
    diagnostics.extend(found);
    Report::new(&policy, diagnostics, Some(probes))
}

/// No policy where a document cannot be read.
fn analyze(sources: &[Source], progress: &Progress) -> (Option<Policy>, Vec<Diagnostic>) {
    match config::load(sources, progress) {
        // What the other documents mean without the broken ones is anyone's guess.
        Err(errors) => (None, errors.into_iter().collect()),
        Ok(documents) => {
            let (policy, mut diagnostics) = Policy::analyze(&documents);
            diagnostics.extend(check_files(&policy, progress));
            (Some(policy), diagnostics)
        }
    }
}

/// Reads all that the rules name, and tries whether TLS can be made of it.
fn check_files(policy: &Policy, progress: &Progress) -> Errors {
    let nothing = Clients::default();
    let mut workshop = Workshop::telling(&nothing, progress.clone());
    let upstreams = policy.rules().flat_map(|rule| &rule.upstreams);
    let problems =
        upstreams.filter_map(|upstream| workshop.originator(&upstream.host, &upstream.tls, &upstream.location).err());
    problems.map(|error| error.diagnostic()).collect()
}

impl Report {
    fn new(policy: &Policy, mut diagnostics: Vec<Diagnostic>, probes: Option<Vec<ProbeReport>>) -> Self {
        diagnostics.sort();
        diagnostics.dedup();
        let errors = diagnostics.iter().filter(|found| found.severity() == Severity::Error).count();
        Self {
            rules: policy.rules().map(|rule| summary::describe(rule)).collect(),
            exceptions: policy.exceptions().iter().map(ExceptionReport::from).collect(),
            probes,
            warnings: diagnostics.len() - errors,
            diagnostics: diagnostics.into_iter().map(Finding::from).collect(),
            errors,
        }
    }
}

impl From<&Exception> for ExceptionReport {
    fn from(Exception { host, port, location }: &Exception) -> Self {
        Self { host: host.to_string(), port: *port, location: Place::from(location) }
    }
}

impl From<Diagnostic> for Finding {
    fn from(found: Diagnostic) -> Self {
        Self {
            code: found.code.id(),
            name: found.code.name(),
            severity: found.severity().to_string(),
            location: Place::from(&found.location),
            path: found.path,
            reason: found.reason,
            remedy: found.remedy,
        }
    }
}

impl From<&Location> for Place {
    fn from(location: &Location) -> Self {
        Self { file: location.file.display().to_string(), line: (location.line > 0).then_some(location.line) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

impl fmt::Display for RuleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)?;
        if let [RouteReport { when: None, then, .. }] = self.routes.as_slice() {
            return write!(f, " -> {then}");
        }
        for route in &self.routes {
            match &route.when {
                Some(when) => write!(f, "\n    {when} -> {}", route.then)?,
                None => write!(f, "\n    otherwise -> {}", route.then)?,
            }
        }
        if self.routes.iter().all(|route| route.when.is_some()) {
            write!(f, "\n    otherwise -> 404")?;
        }
        Ok(())
    }
}

impl fmt::Display for ExceptionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{} -> left in clear, by mode DISABLE ({})", self.host, self.port, self.location)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{} {}] ({}", self.severity, self.code, self.name, self.location)?;
        if let Some(path) = &self.path {
            write!(f, " {path}")?;
        }
        write!(f, ") {}", self.reason)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n    remedy: {remedy}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            writeln!(f, "{rule}")?;
        }
        for exception in &self.exceptions {
            writeln!(f, "{exception}")?;
        }
        for probe in self.probes.iter().flatten() {
            writeln!(f, "{probe}")?;
        }
        for finding in &self.diagnostics {
            writeln!(f, "{finding}")?;
        }
        if self.rules.is_empty() && self.errors == 0 {
            writeln!(f, "there is no host with TLS origination: nothing would be intercepted")?;
        }
        let plural = |count: usize, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        write!(f, "{}, ", plural(self.rules.len(), "rule"))?;
        if !self.exceptions.is_empty() {
            write!(f, "{}, ", plural(self.exceptions.len(), "exception"))?;
        }
        write!(f, "{}, {}", plural(self.errors, "error"), plural(self.warnings, "warning"))
    }
}
