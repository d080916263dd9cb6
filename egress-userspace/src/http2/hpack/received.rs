//! What the other end has put into its dynamic table.

use std::{collections::VecDeque, rc::Rc};

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
    /// The one of another entry, if it was sent by its index.
    name: Rc<[u8]>,
    value: Box<[u8]>,
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
        let [is_sound, value_is] = entry.is_sound;
        Ok((Text { bytes: &entry.name, is_sound }, Text { bytes: &entry.value, is_sound: value_is }))
    }

    /// The name of an entry at an index, if that is not what everybody has.
    pub fn name(&self, index: usize) -> Option<&Rc<[u8]>> {
        Some(&self.entries.get(index.checked_sub(statics::END)?)?.name)
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
    /// One of these, whose name may be `shared` with another. It has to be there before others go, as its name can be that of one of them.
    pub fn new(name: Text<'_>, shared: Option<&Rc<[u8]>>, value: Text<'_>) -> Self {
        Self {
            name: shared.map_or_else(|| name.bytes.into(), Rc::clone),
            value: value.bytes.into(),
            is_sound: [name.is_sound, value.is_sound],
        }
    }

    fn size(&self) -> usize {
        size(&self.name, &self.value)
    }
}
