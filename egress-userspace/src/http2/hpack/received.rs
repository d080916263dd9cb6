//! What the other end has put into its dynamic table.

use std::collections::VecDeque;

use super::{MOST, Undecodable, size, statics};

/// A name or a value.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    /// As HTTP/1.1 has it.
    pub bytes: &'a [u8],
    /// Whether HTTP/2 has such.
    pub is_sound: bool,
}

/// The table, together with that which everybody has.
pub struct Received {
    /// From the newest on.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

/// A field in it.
pub struct Entry {
    /// The name and the value.
    text: Box<[u8]>,
    name: usize,
    is_sound: [bool; 2],
}

impl Received {
    /// Nothing is in it.
    pub fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, limit: MOST }
    }

    /// The field at an index.
    pub fn get(&self, index: usize) -> Result<(Text<'_>, Text<'_>), Undecodable> {
        let Some(at) = index.checked_sub(statics::END) else {
            let (name, value) = statics::get(index).ok_or(Undecodable)?;
            return Ok((Text { bytes: name, is_sound: true }, Text { bytes: value, is_sound: true }));
        };
        let entry = self.entries.get(at).ok_or(Undecodable)?;
        let (name, value) = entry.text.split_at(entry.name);
        let [is_sound, value_is] = entry.is_sound;
        Ok((Text { bytes: name, is_sound }, Text { bytes: value, is_sound: value_is }))
    }

    /// Adds a field; one that there is no room for empties the table, and that is all (RFC 7541 section 4.4).
    pub fn add(&mut self, entry: Entry) {
        let size = entry.size();
        self.make_room(size);
        if size <= self.limit {
            self.size += size;
            self.entries.push_front(entry);
        }
    }

    /// The other end says that its table is this large from now on.
    pub fn resize(&mut self, limit: usize) -> Result<(), Undecodable> {
        if limit > MOST {
            return Err(Undecodable);
        }
        self.limit = limit;
        self.make_room(0);
        Ok(())
    }

    /// What its entries take of it.
    #[cfg(test)]
    pub fn size(&self) -> usize {
        self.size
    }

    fn make_room(&mut self, size: usize) {
        while self.size + size > self.limit
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size();
        }
    }
}

impl Entry {
    /// One of these. It has to be there before others go, as its name can be that of one of them.
    pub fn new(name: Text<'_>, value: Text<'_>) -> Self {
        Self {
            text: [name.bytes, value.bytes].concat().into(),
            name: name.bytes.len(),
            is_sound: [name.is_sound, value.is_sound],
        }
    }

    fn size(&self) -> usize {
        let (name, value) = self.text.split_at(self.name);
        size(name, value)
    }
}
