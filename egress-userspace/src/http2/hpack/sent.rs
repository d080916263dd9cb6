//! What is in the dynamic table that our blocks refer to.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, Hasher},
};

use foldhash::fast::RandomState;

use super::{MOST, size, statics};

/// The name of a field.
#[derive(Clone, Copy)]
pub enum Name<'a> {
    /// Its first index in the table that everybody has.
    Static(usize),
    /// In lower case.
    Own(&'a [u8]),
}

/// How a field is to be sent.
#[derive(Clone, Copy)]
pub enum Place {
    /// It is in the table.
    Field(usize),
    /// Perhaps its name is, and it goes there itself.
    Added(Option<usize>),
    /// Perhaps its name is.
    Passing(Option<usize>),
}

/// The table. What was never sent before does not go into it, unless its name was not either: values that are another each time
/// would push out those that are not, and cost us and the other end the work.
pub struct Sent {
    /// From the newest on.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
    /// The number of the newest entry.
    newest: u32,
    state: RandomState,
    sets: [[Slot; 4]; SETS],
}

/// Four times this is as many as there can be entries.
const SETS: usize = 32;

struct Entry {
    /// The first index of its name in the table that everybody has. If it is not there, it is in `text`, before the value.
    known: Option<usize>,
    text: Box<[u8]>,
    name: usize,
}

/// A name or a field that was seen. It is found by its hash, and never moved or removed when its entry is.
#[derive(Clone, Copy)]
struct Slot {
    /// The upper half of the hash.
    mark: u32,
    /// The number of its entry, if there still is one of that number.
    number: u32,
}

/// What is known of a hash.
enum Seen<'a> {
    Never,
    /// There is no entry, or not any more.
    Before,
    /// Its index, too.
    Kept(usize, &'a Entry),
}

impl Sent {
    /// Nothing is in it.
    pub fn new() -> Self {
        let never = Slot { mark: 0, number: NO_ENTRY };
        Self {
            entries: VecDeque::new(),
            size: 0,
            limit: MOST,
            newest: 0,
            state: RandomState::default(),
            sets: [[never; 4]; SETS],
        }
    }

    /// How large it may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Changes that.
    pub fn resize(&mut self, limit: usize) {
        self.limit = limit;
        self.make_room(0);
    }

    /// Where a field is that is not in the table that everybody has, and whether it is added.
    pub fn place(&mut self, name: Name<'_>, value: &[u8]) -> Place {
        let mut hasher = self.state.build_hasher();
        match name {
            Name::Static(index) => hasher.write_usize(index),
            Name::Own(text) => hasher.write(text),
        }
        let of_name = hasher.finish();
        hasher.write(value);
        let of_field = hasher.finish();
        let seen = match self.seen(of_field) {
            Seen::Kept(index, entry) if entry.is_named(name) && entry.value() == value => return Place::Field(index),
            Seen::Kept(..) | Seen::Before => true,
            Seen::Never => false,
        };
        let index = self.index_of(name, of_name);
        if 4 * size(name.text(), value) > 3 * self.limit {
            return Place::Passing(index);
        }
        if seen || index.is_none() {
            self.add(Entry::new(name, value), of_name, of_field);
            return Place::Added(index);
        }
        self.remember(of_field, self.newest.wrapping_add(NO_ENTRY));
        Place::Passing(index)
    }

    fn index_of(&self, name: Name<'_>, hash: u64) -> Option<usize> {
        match (name, self.seen(hash)) {
            (Name::Static(index), _) => Some(index),
            (_, Seen::Kept(index, entry)) if entry.is_named(name) => Some(index),
            _ => None,
        }
    }

    fn seen(&self, hash: u64) -> Seen<'_> {
        let Some(slot) = self.sets[set(hash)].iter().find(|slot| slot.mark == mark(hash)) else { return Seen::Never };
        let at = self.newest.wrapping_sub(slot.number) as usize;
        self.entries.get(at).map_or(Seen::Before, |entry| Seen::Kept(statics::END + at, entry))
    }

    fn add(&mut self, entry: Entry, of_name: u64, of_field: u64) {
        let size = entry.size();
        self.make_room(size);
        self.size += size;
        self.newest = self.newest.wrapping_add(1);
        let is_named_here = entry.known.is_none();
        self.entries.push_front(entry);
        self.remember(of_field, self.newest);
        if is_named_here {
            self.remember(of_name, self.newest);
        }
    }

    fn make_room(&mut self, size: usize) {
        while self.size + size > self.limit
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size();
        }
    }

    /// Puts it into a slot: its own, or the one that has been without an entry for longest, or that was used first.
    fn remember(&mut self, hash: u64, number: u32) {
        let (newest, count) = (self.newest, self.entries.len());
        let slots = &mut self.sets[set(hash)];
        let own = slots.iter().position(|slot| slot.mark == mark(hash));
        let without = || slots.iter().rposition(|slot| newest.wrapping_sub(slot.number) as usize >= count);
        let at = own.or_else(without).unwrap_or(slots.len() - 1);
        slots[..=at].rotate_right(1);
        slots[0] = Slot { mark: mark(hash), number };
    }
}

/// So far from the newest entry there is none.
const NO_ENTRY: u32 = 1 << 31;

fn set(hash: u64) -> usize {
    hash as usize % SETS
}

fn mark(hash: u64) -> u32 {
    (hash >> 32) as u32
}

impl<'a> Name<'a> {
    fn text(self) -> &'a [u8] {
        match self {
            Self::Static(index) => statics::get(index).map_or(b"", |(name, _)| name),
            Self::Own(text) => text,
        }
    }
}

impl Entry {
    fn new(name: Name<'_>, value: &[u8]) -> Self {
        let (known, own) = match name {
            Name::Static(index) => (Some(index), &b""[..]),
            Name::Own(text) => (None, text),
        };
        Self { known, text: [own, value].concat().into(), name: own.len() }
    }

    fn is_named(&self, name: Name<'_>) -> bool {
        match name {
            Name::Static(index) => self.known == Some(index),
            Name::Own(text) => self.known.is_none() && &self.text[..self.name] == text,
        }
    }

    fn value(&self) -> &[u8] {
        &self.text[self.name..]
    }

    fn size(&self) -> usize {
        let name = self.known.map_or(Name::Own(&self.text[..self.name]), Name::Static);
        size(name.text(), self.value())
    }
}
