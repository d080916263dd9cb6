//! Blocks that we send (RFC 7541 section 6).

use bytes::BytesMut;

use super::{
    MOST,
    primitive::{put_integer, put_string},
    sent::{Name, Place, Sent},
    statics,
};

/// How much room is kept from one block to the next.
const KEPT: usize = 256;

/// Encodes the blocks of one connection.
pub struct Encoder {
    table: Sent,
    /// The size that the other end wants of the table, and the smallest that it wanted since the last block.
    wanted: usize,
    smallest: usize,
    /// Where names become lower case.
    lower: Vec<u8>,
}

/// How a field is written.
#[derive(Clone, Copy)]
enum Form {
    Indexed,
    Added,
    Passing,
    /// Nobody on the way may put it into a table (RFC 7541 section 7.1.3).
    Never,
    Size,
}

impl Encoder {
    /// One with nothing in its table, which can be as large as that of each other end, until that says otherwise.
    pub fn new() -> Self {
        Self { table: Sent::new(), wanted: MOST, smallest: MOST, lower: Vec::new() }
    }

    /// The other end has said how large its table may be (SETTINGS_HEADER_TABLE_SIZE). The next block says how large it is.
    pub fn set_table_size(&mut self, size: u32) {
        self.wanted = usize::try_from(size).map_or(MOST, |size| size.min(MOST));
        self.smallest = self.smallest.min(self.wanted);
    }

    /// Begins a block.
    pub fn begin(&mut self, out: &mut BytesMut) {
        // In between it may have been smaller, which the other end wants to see (RFC 7541 section 4.2).
        for size in [self.smallest.min(self.table.limit()), self.wanted] {
            if size != self.table.limit() {
                self.table.resize(size);
                Form::Size.put(size, out);
            }
        }
        self.smallest = self.wanted;
        self.lower.shrink_to(KEPT);
    }

    /// Adds a field to the block that nobody on the way may put into a table. The name can be in any case.
    pub fn secret(&mut self, name: &[u8], value: &[u8], out: &mut BytesMut) {
        match statics::of_name(name) {
            Some(index) => Form::Never.put(index, out),
            None => {
                Form::Never.put(0, out);
                put_string(&name.to_ascii_lowercase(), out);
            }
        }
        put_string(value, out);
    }

    /// Adds a field to the block. The name can be in any case.
    pub fn field(&mut self, name: &[u8], value: &[u8], out: &mut BytesMut) {
        let Some(index) = statics::of_name(name) else {
            self.lower.clear();
            self.lower.extend_from_slice(name);
            self.lower.make_ascii_lowercase();
            let place = self.table.place(Name::Own(&self.lower), value);
            return put_placed(place, &self.lower, value, out);
        };
        if let Some(index) = statics::of_field(index, value) {
            return Form::Indexed.put(index, out);
        }
        if let Some(form) = kept_out(index, value) {
            form.put(index, out);
            return put_string(value, out);
        }
        put_placed(self.table.place(Name::Static(index), value), b"", value, out);
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Form {
    fn put(self, number: usize, out: &mut BytesMut) {
        let (prefix, first) = match self {
            Self::Indexed => (7, 0x80),
            Self::Added => (6, 0x40),
            Self::Size => (5, 0x20),
            Self::Never => (4, 0x10),
            Self::Passing => (4, 0),
        };
        put_integer(number, prefix, first, out);
    }
}

/// How a field is written that never goes into the table, because its value is another each time, or a secret: what can be
/// guessed by others byte by byte is so by how short it becomes.
fn kept_out(index: usize, value: &[u8]) -> Option<Form> {
    Some(match index {
        // Authorization and Proxy-Authorization.
        23 | 49 => Form::Never,
        // Cookie. Short ones can be guessed as a whole.
        32 if value.len() < 20 => Form::Never,
        // :path, Age, Content-Length, Cookie, ETag, If-Modified-Since, If-None-Match, Location and Set-Cookie.
        4 | 21 | 28 | 32 | 34 | 40 | 41 | 46 | 55 => Form::Passing,
        _ => return None,
    })
}

fn put_placed(place: Place, name: &[u8], value: &[u8], out: &mut BytesMut) {
    let (form, index) = match place {
        Place::Field(index) => return Form::Indexed.put(index, out),
        Place::Added(index) => (Form::Added, index),
        Place::Passing(index) => (Form::Passing, index),
    };
    form.put(index.unwrap_or_default(), out);
    if index.is_none() {
        put_string(name, out);
    }
    put_string(value, out);
}
