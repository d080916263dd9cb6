//! Certificates that origins are shown, and revocation lists that they are looked up in, whose time is nearly over.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::upstream::tls::{Dated, Validity};

/// In seconds.
const DAY: i64 = 24 * 60 * 60;
/// How long before its end one is warned of.
const NOTICE: i64 = 14 * DAY;
/// Of which part of its time at most: one that is made for a week is renewed within it.
const PART: i64 = 5;

/// Those in use, by what they are called.
#[derive(Default)]
pub(super) struct Certificates {
    used: BTreeMap<(Dated, String), Validity>,
    /// When they were warned of, within the last day: that they are nearly over, and that they are.
    told: BTreeMap<((Dated, String), bool), i64>,
}

/// One whose time is nearly over, or is over.
pub(super) struct Ending<'a> {
    pub(super) what: &'a Dated,
    /// What it is called.
    pub(super) file: &'a str,
    /// In seconds since 1970.
    pub(super) until: i64,
    pub(super) is_over: bool,
}

impl Certificates {
    /// Takes in which are in use.
    pub(super) fn set(&mut self, used: BTreeMap<(Dated, String), Validity>) {
        self.used = used;
    }

    /// Those to warn of: each once a day, and when it is over. `now` is in seconds since 1970.
    pub(super) fn look(&mut self, now: i64) -> Vec<Ending<'_>> {
        // Since then the clock may have been put back.
        self.told.retain(|_, told| (now - *told).abs() < DAY);
        let is_ending = |validity: &Validity| {
            let notice = NOTICE.min(validity.not_after.saturating_sub(validity.not_before) / PART);
            validity.not_after.saturating_sub(now) < notice
        };
        let mut due = Vec::new();
        for (name, validity) in self.used.iter().filter(|(_, validity)| is_ending(validity)) {
            let (until, is_over) = (validity.not_after, validity.not_after < now);
            if let Entry::Vacant(told) = self.told.entry((name.clone(), is_over)) {
                told.insert(now);
                due.push(Ending { what: &name.0, file: &name.1, until, is_over });
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_ends_soon_is_told_of_once_a_day_and_when_it_is_over_until_it_is_renewed() {
        let validity =
            |not_before: i64, not_after: i64| Validity { not_before: not_before * DAY, not_after: not_after * DAY };
        let mut certificates = Certificates::default();
        let named = |name: &str| (Dated::Certificate, name.to_owned());
        let mut used: BTreeMap<_, _> =
            [("long", validity(0, 400)), ("short", validity(380, 385))].map(|(name, is)| (named(name), is)).into();
        let mut look = |used: &BTreeMap<(Dated, String), Validity>, hour: i64| {
            certificates.set(used.clone());
            certificates.look(hour * DAY / 24).into_iter().map(|ending| ending.file.to_owned()).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(look(&used, 24 * 383), none);
        assert_eq!(look(&used, 24 * 384 + 2), ["short"], "in the last fifth");
        assert_eq!(look(&used, 24 * 385), none, "a day is not over");
        assert_eq!(look(&used, 24 * 385 + 1), ["short"], "it is over");
        assert_eq!(look(&used, 24 * 386), none, "it was told");
        assert_eq!(look(&used, 24 * 386 + 1), ["long", "short"]);
        used.insert(named("short"), validity(386, 391));
        assert_eq!(look(&used, 24 * 386 + 2), none);
        assert_eq!(look(&used, 24 * 387 + 1), ["long"]);
        assert_eq!(look(&used, 24 * 800), ["long", "short"], "the clock is ahead");
        assert_eq!(look(&used, 24 * 388 + 2), ["long"]);
    }
}
