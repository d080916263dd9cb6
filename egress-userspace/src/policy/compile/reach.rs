//! Which routes and matches no request gets to, as those before them take all that they are for.

use std::{iter, ptr};

use foldhash::HashMap;

use super::{Compiler, http, routes::Applicable};
use crate::{
    config::{
        Code, Located,
        virtual_service::{RequestMatch, Route},
    },
    policy::{Match, TextMatch},
};

impl<'d> Compiler<'_, 'd> {
    /// Says which there are: once for all hosts and ports that have the same ones.
    pub(super) fn check_reachable(&mut self, routes: &[Applicable<'d>]) {
        let all = routes.iter().flat_map(|Applicable { route, matches }| {
            let matches = matches.iter().map(|matched| ptr::from_ref(*matched).cast());
            iter::once(ptr::from_ref(*route).cast()).chain(matches)
        });
        if !self.checked.insert(all.collect()) {
            return;
        }
        let mut earlier = Earlier::default();
        let mut catch_all: Option<&Located<Route>> = None;
        for route in routes {
            if let Some(first) = catch_all {
                let text =
                    format!("the route at {} takes every request, so none gets here; put it last", first.location);
                self.reports.at(route.route, Code::NeverMatches.because(text));
                continue;
            }
            if route.matches.is_empty() {
                catch_all = Some(route.route);
                continue;
            }
            for matched in &route.matches {
                let compiled = http::request_match(matched);
                match earlier.covering(&compiled) {
                    Some(first) => {
                        let text = format!(
                            "the match at {} takes every request that this one is for; put it after this one",
                            first.location,
                        );
                        self.reports.at(*matched, Code::NeverMatches.because(text));
                    }
                    None => earlier.add(compiled, matched),
                }
            }
        }
    }
}

/// The matches that a request was held against, found at a cost that does not grow with their number.
#[derive(Default)]
struct Earlier<'d> {
    all: HashMap<Match, &'d Located<RequestMatch>>,
    /// Of those that ask for nothing but a path those by prefix.
    prefixes: HashMap<Box<str>, &'d Located<RequestMatch>>,
    /// The same where case does not matter, in lower case: also that which takes every path, whose prefix is empty.
    lower_prefixes: HashMap<Box<str>, &'d Located<RequestMatch>>,
}

impl<'d> Earlier<'d> {
    fn add(&mut self, compiled: Match, matched: &'d Located<RequestMatch>) {
        let Match { path, ignore_case, method, authority, headers, without_headers, query } = &compiled;
        let asks_for_more = method.is_some()
            || authority.is_some()
            || !headers.is_empty()
            || !without_headers.is_empty()
            || !query.is_empty();
        match path {
            _ if asks_for_more => {}
            None => _ = self.lower_prefixes.insert("".into(), matched),
            Some(TextMatch::Prefix(prefix)) if &**prefix == "/" => _ = self.lower_prefixes.insert("".into(), matched),
            Some(TextMatch::Prefix(prefix)) if *ignore_case => {
                self.lower_prefixes.insert(prefix.to_ascii_lowercase().into(), matched);
            }
            Some(TextMatch::Prefix(prefix)) => _ = self.prefixes.insert(prefix.clone(), matched),
            Some(TextMatch::Exact(_) | TextMatch::Regex(_)) => {}
        }
        self.all.insert(compiled, matched);
    }

    /// One that every request is for that `later` is for, as far as that is plain.
    fn covering(&self, later: &Match) -> Option<&'d Located<RequestMatch>> {
        if let Some(found) = self.all.get(later).copied() {
            return Some(found);
        }
        let text = match &later.path {
            Some(TextMatch::Exact(text) | TextMatch::Prefix(text)) => text,
            Some(TextMatch::Regex(_)) | None => "",
        };
        let lower = text.to_ascii_lowercase();
        (0..=text.len()).filter(|end| text.is_char_boundary(*end)).find_map(|end| {
            let exactly = if later.ignore_case { None } else { self.prefixes.get(&text[..end]) };
            exactly.or_else(|| self.lower_prefixes.get(&lower[..end])).copied()
        })
    }
}
