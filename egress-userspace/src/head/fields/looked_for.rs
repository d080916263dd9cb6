//! Names of fields that are looked for.

use http::HeaderName;

/// A name that is looked for.
pub(super) struct Name<'a> {
    /// In lower case.
    pub(super) text: &'a [u8],
    pub(super) mark: u8,
}

impl<'a> Name<'a> {
    pub(super) fn new(name: &'a HeaderName) -> Self {
        let text = name.as_str().as_bytes();
        Self { text, mark: mark(text) }
    }
}

/// Names that are looked for together.
#[derive(Debug)]
pub struct Names {
    /// In lower case.
    names: &'static [&'static str],
    /// A bit for the mark of each.
    pub(super) marks: u64,
}

impl Names {
    /// These, which are in lower case.
    pub const fn new(names: &'static [&'static str]) -> Self {
        let (mut marks, mut at) = (0, 0);
        while at < names.len() {
            let (name, mut byte) = (names[at].as_bytes(), 0);
            while byte < name.len() {
                assert!(!name[byte].is_ascii_uppercase(), "a name is not in lower case");
                byte += 1;
            }
            marks |= 1 << mark(name);
            at += 1;
        }
        Self { names, marks }
    }

    /// Whether this name is one of them, in whatever case.
    pub fn has(&self, name: &[u8]) -> bool {
        self.may_have(mark(name)) && self.names.iter().any(|one| is_same(name, one.as_bytes()))
    }

    pub(super) fn may_have(&self, mark: u8) -> bool {
        self.marks & 1 << mark != 0
    }
}

/// Whether a name is, in whatever case, this one in lower case. All of it is looked at at once: what has the same mark nearly always
/// is.
pub(super) fn is_same(name: &[u8], lower: &[u8]) -> bool {
    let pairs = name.iter().zip(lower);
    name.len() == lower.len() && pairs.fold(true, |is, (one, other)| is & (one.to_ascii_lowercase() == *other))
}

/// A number below 64 for a name, the same in any case.
pub(super) const fn mark(name: &[u8]) -> u8 {
    let first = if name.is_empty() { 0 } else { name[0].to_ascii_lowercase() };
    ((name.len() as u8).wrapping_mul(5) ^ first) % 64
}
