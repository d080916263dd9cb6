//! Sources to texts, and texts to documents: on all processors where there is much of it.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    hash::{BuildHasher as _, Hash as _, Hasher as _},
    io::{self, Read as _},
    num::NonZero,
    panic,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use foldhash::quality::FixedState;

use super::{Code, Document, Errors, HostPattern, Location, Progress, Source, node, resource, short_form};

/// How many bytes a thread takes at a time. What is less in all is read by one.
const PIECE: usize = 256 * 1024;

/// The documents of all sources, as pieces that the next reading can take over where the text is the same.
#[derive(Clone, Debug, Default)]
pub struct Documents(Vec<(u64, Arc<Vec<Document>>)>);

impl Documents {
    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Document> + Clone {
        self.0.iter().flat_map(|(_, documents)| documents.iter())
    }

    pub(super) fn into_vec(self) -> Vec<Document> {
        self.0.into_iter().flat_map(|(_, documents)| Arc::unwrap_or_clone(documents)).collect()
    }
}

/// What all sources say, not yet understood.
pub struct Texts {
    items: Vec<Item>,
    errors: Errors,
}

/// Tells texts apart: those that mean something else have another one, as good as always.
#[derive(Debug)]
pub struct Fingerprint {
    /// Of all of them.
    pub all: u64,
    /// Of each piece.
    pieces: Vec<u64>,
}

enum Item {
    File(Location, String),
    Host(HostPattern),
}

impl Texts {
    /// Reads all files of all sources.
    pub fn read(sources: &[Source], progress: &Progress) -> Self {
        let mut texts = Self { items: Vec::new(), errors: Errors::default() };
        let mut seen = HashSet::new();
        for source in sources {
            match source {
                Source::Path(path) => texts.read_path(path, &mut seen, progress),
                Source::Host(host) => texts.items.push(Item::Host(host.clone())),
            }
        }
        texts
    }

    /// One text.
    pub(super) fn of(text: &str, file: &Path) -> Self {
        Self { items: vec![Item::File(Location::whole(file), text.to_owned())], errors: Errors::default() }
    }

    /// What tells them apart from others.
    pub fn fingerprint(&self) -> Fingerprint {
        let pieces: Vec<_> = self.items.iter().flat_map(pieces).map(|piece| piece.fingerprint()).collect();
        Fingerprint { all: FixedState::default().hash_one((self.errors.count(), &pieces)), pieces }
    }

    /// The documents, all of which are read.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn parse_alone(self) -> Result<Documents, Errors> {
        let fingerprint = self.fingerprint();
        self.parse(&fingerprint, &Documents::default())
    }

    /// The documents. Everything that is wrong with any of them is reported at once, and then nothing of them is used. What is
    /// among the `known` ones is not read again.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn parse(self, fingerprint: &Fingerprint, known: &Documents) -> Result<Documents, Errors> {
        let Self { items, mut errors } = self;
        let pieces: Vec<_> = fingerprint.pieces.iter().copied().zip(items.iter().flat_map(pieces)).collect();
        let known: HashMap<_, _> = known.0.iter().map(|(fingerprint, documents)| (*fingerprint, documents)).collect();
        let unknown: Vec<_> = pieces.iter().filter(|(fingerprint, _)| !known.contains_key(fingerprint)).collect();
        let mut read = read_all(&unknown);
        let documents = pieces.iter().map(|(fingerprint, _)| {
            let documents = match known.get(fingerprint) {
                Some(documents) => Arc::clone(documents),
                None => {
                    let (documents, wrong) = read.next().unwrap_or_default();
                    errors.extend(wrong);
                    Arc::new(documents)
                }
            };
            (*fingerprint, documents)
        });
        let documents = Documents(documents.collect());
        errors.or(documents)
    }

    /// Reads those files that were not `seen`: a file can be named more than once, and be in a directory that is.
    fn read_path(&mut self, path: &Path, seen: &mut HashSet<PathBuf>, progress: &Progress) {
        let files = progress.at(path, || if path.is_dir() { list(path) } else { Ok(vec![path.to_owned()]) });
        match files {
            // A volume that is not mounted looks like this, and that nobody wants any rule is not to be guessed.
            Ok(files) if files.is_empty() => self.unreadable(path, NO_FILES.to_owned()),
            Ok(files) => {
                for file in files {
                    match progress.at(&file, || read_file(&file, seen)) {
                        Ok(None) => {}
                        Ok(Some(text)) => self.items.push(Item::File(Location::whole(file), text)),
                        Err(error) => self.unreadable(&file, format!("cannot read the file: {error}")),
                    }
                }
            }
            Err(error) => self.unreadable(path, format!("cannot list the directory: {error}")),
        }
    }

    fn unreadable(&mut self, path: &Path, why: String) {
        self.errors.push(Location::whole(path), "", Code::Unreadable.because(why));
    }
}

/// What a file says. None if it was read already.
fn read_file(path: &Path, seen: &mut HashSet<PathBuf>) -> io::Result<Option<String>> {
    if fs::canonicalize(path).is_ok_and(|real| !seen.insert(real)) {
        return Ok(None);
    }
    let mut text = String::new();
    File::open(path)?.take(LARGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        let what = format!("it is larger than {} MiB", LARGEST / 1024 / 1024);
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(Some(text))
}

/// What a file may have, in bytes: 100,000 hosts take a quarter of it.
const LARGEST: u64 = 256 * 1024 * 1024;

/// What ends the names of configuration files.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

const NO_FILES: &str = "the directory has no file whose name ends in .yaml, .yml or .json, and those below it are not looked \
    into; if there are to be no rules, put a file there that has only a comment";

/// The configuration files of a directory in the order of their names.
///
/// In a mounted ConfigMap these are symbolic links into `..data`, which itself, as all that starts with a dot, is
/// not one.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_config = path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
        // A link that leads nowhere stays in the list, so that reading it fails by name.
        if is_config && !is_hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What one thread reads at a time.
enum Piece<'t> {
    Text {
        file: &'t Location,
        /// How many lines of the file come before it.
        before: u32,
        text: &'t str,
    },
    Host(&'t HostPattern),
}

fn pieces(item: &Item) -> Vec<Piece<'_>> {
    match item {
        Item::File(file, text) => {
            node::split(text, PIECE).into_iter().map(|(before, text)| Piece::Text { file, before, text }).collect()
        }
        Item::Host(host) => vec![Piece::Host(host)],
    }
}

type Read = (Vec<Document>, Errors);

impl Piece<'_> {
    fn read(&self) -> Read {
        match *self {
            Self::Text { file, before, text } => {
                let (mut documents, mut errors) = Read::default();
                // Each has a name of its own to share: threads that count the same one hinder each other.
                let file = Location::whole(&*file.file);
                for node in node::parse(text, &file, before, &mut errors) {
                    resource::decode(&node, &mut documents, &mut errors);
                }
                (documents, errors)
            }
            Self::Host(host) => (short_form::documents(host).into(), Errors::default()),
        }
    }

    /// The same for pieces that mean the same, with their places.
    fn fingerprint(&self) -> u64 {
        let mut hasher = FixedState::default().build_hasher();
        match self {
            Self::Text { file, before, text } => (&file.file, before, text).hash(&mut hasher),
            Self::Host(host) => host.hash(&mut hasher),
        }
        hasher.finish()
    }

    fn len(&self) -> usize {
        match self {
            Self::Text { text, .. } => text.len(),
            Self::Host(_) => 0,
        }
    }
}

/// What each piece has, in their order.
fn read_all(pieces: &[&(u64, Piece<'_>)]) -> impl Iterator<Item = Read> + use<> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut read = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            match pieces.get(index) {
                Some((_, piece)) => read.push((index, piece.read())),
                None => return read,
            }
        }
    };
    let size: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(size.div_ceil(PIECE));
    let mut read = thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut read = work();
        for helper in helpers {
            read.extend(helper.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        }
        read
    });
    read.sort_by_key(|(index, _)| *index);
    read.into_iter().map(|(_, read)| read)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::config::Resource;

    #[test]
    fn pieces_are_read_as_the_whole_would_be() {
        let entry = |host: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: x}}\nspec:\n  hosts: [{host}]\n  \
                 ports: [{{number: 80, name: http}}]\n  resolution: DNS\n"
            )
        };
        let count = 5 * PIECE / entry("").len();
        let mut text = String::new();
        for index in 0..count {
            writeln!(text, "{}---", entry(&format!("h{index}.example"))).expect("a string");
        }
        assert!(node::split(&text, PIECE).len() >= 4);

        let parse = |text: &str, known: &Documents| {
            let texts = Texts::of(text, Path::new("rules.yaml"));
            let fingerprint = texts.fingerprint();
            texts.parse(&fingerprint, known)
        };
        let documents = parse(&text, &Documents::default()).expect("valid documents");
        let found = documents.iter().map(|document| match &document.resource {
            Resource::ServiceEntry(entry) => (entry.hosts[0].location.line, entry.hosts[0].value.to_string()),
            other => panic!("{other:?}"),
        });
        let lines = (5..).step_by(8);
        let expected = lines.zip((0..count).map(|index| format!("h{index}.example")));
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());

        // What is the same is not read again, and what has changed is, in its place.
        let changed = text.replace("h3.example", "g3.example");
        let again = parse(&changed, &documents).expect("valid documents");
        let kept = documents.0.iter().zip(&again.0).filter(|(one, other)| Arc::ptr_eq(&one.1, &other.1)).count();
        assert_eq!(kept, documents.0.len() - 1);
        let fresh = parse(&changed, &Documents::default()).expect("valid documents");
        assert!(fresh.iter().eq(again.iter()));

        // What is wrong at the end is found there.
        let wrong = format!("{text}kind: Nothing\napiVersion: v1\n");
        let errors = parse(&wrong, &documents).expect_err("an unknown kind");
        let lines: Vec<_> = errors.iter().map(|error| error.location.line).collect();
        assert_eq!(lines, [u32::try_from(8 * count + 1).expect("few lines")], "{errors}");
    }

    #[test]
    fn fingerprints_tell_texts_apart() {
        let of = |text, file: &str| Texts::of(text, Path::new(file)).fingerprint().all;
        assert_eq!(of("a", "x"), of("a", "x"));
        assert!(of("a", "x") != of("b", "x") && of("a", "x") != of("a", "y"));
    }
}
