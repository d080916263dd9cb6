//! Configuration: what is wrong with it is said of a line that it has, and where it is written makes no difference.

#![no_main]

use std::path::Path;

use egress::{
    config::{self, Document, Errors, Location},
    policy::Policy,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    // To YAML a carriage return alone is the end of a line, too.
    let lines = text.split(['\n', '\r']).count() as u32;
    let read = parse(text);
    // Mark that a file begins is none within it.
    if !text.starts_with('\u{feff}') {
        check_moved(&read, &parse(&format!("# One line more.\n{text}")));
    }
    let documents = match read {
        Ok(documents) => documents,
        Err(errors) => {
            assert!(errors.count() > 0);
            for error in errors.iter() {
                check_place(&error.location, lines);
                assert!(!error.to_string().is_empty() && !error.reason.is_empty());
            }
            return;
        }
    };
    for document in &documents {
        check_place(&document.location, lines);
    }
    let (policy, diagnostics) = Policy::analyze(&documents);
    for diagnostic in &diagnostics {
        check_place(&diagnostic.location, lines);
        assert!(!diagnostic.reason.is_empty());
    }
    for rule in policy.rules() {
        check_place(&rule.location, lines);
        assert!(rule.port != 0);
    }
});

fn parse(text: &str) -> Result<Vec<Document>, Errors> {
    config::parse(text, Path::new("rules.yaml"))
}

fn check_place(place: &Location, lines: u32) {
    assert!((1..=lines).contains(&place.line), "{place} is not one of {lines} lines");
}

/// What was read is the same, one line further down.
fn check_moved(here: &Result<Vec<Document>, Errors>, there: &Result<Vec<Document>, Errors>) {
    match (here, there) {
        (Ok(here), Ok(there)) => {
            assert_eq!(here.len(), there.len());
            for (here, there) in here.iter().zip(there) {
                assert_eq!((here.location.line + 1, &here.metadata.name), (there.location.line, &there.metadata.name));
            }
        }
        (Err(here), Err(there)) => {
            assert_eq!(here.count(), there.count());
            for (here, there) in here.iter().zip(there.iter()) {
                assert_eq!((here.location.line + 1, here.code), (there.location.line, there.code));
            }
        }
        _ => panic!("{here:?} becomes {there:?}"),
    }
}
