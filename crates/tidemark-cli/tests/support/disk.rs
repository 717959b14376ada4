//! A disk that forgets what was not synced: a model of the calls of a [`trace`](super::trace).
//!
//! POSIX promises little, and this is no more: a file's bytes are durable when the file was
//! synced after they were written, or its descriptor syncs every write; a name is durable when
//! its directory was synced. Until then each of them may be there after a power loss or not,
//! whatever came before it. Only a rename is one thing, which every file system with a journal
//! sees to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::chain::Rng;
use super::trace::Call;

/// The log of points that a traced process passes.
pub(crate) const HITS: &str = "hits";

/// A page of LMDB's, and what a disk writes at a time.
const PAGE: usize = 4096;

/// The directory that everything lies in.
const ROOT: usize = 0;

/// Everything that happened to a folder.
pub(crate) struct Disk {
    root: PathBuf,
    objects: Vec<Object>,
    /// What each object was when the model began, then every change in order.
    changes: Vec<Change>,
    /// Names as they are at the end of what was replayed.
    names: HashMap<PathBuf, usize>,
    /// Calls that were replayed.
    pub(crate) moments: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Object {
    Folder,
    File,
}

/// One thing that a power loss keeps or loses.
#[derive(Clone)]
struct Change {
    /// The call that made it, by its number.
    moment: usize,
    /// The call that made it durable.
    durable: Option<usize>,
    is_of_lock: bool,
    what: What,
}

#[derive(Clone)]
enum What {
    Bytes {
        file: usize,
        offset: usize,
        bytes: Vec<u8>,
    },
    Length {
        file: usize,
        bytes: usize,
    },
    /// A name in a folder stands for something else, or for nothing.
    Name {
        folder: usize,
        name: String,
        object: Option<usize>,
    },
    Moved {
        from: (usize, String),
        to: (usize, String),
        object: usize,
    },
}

/// What a power loss did to a change that was not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Kept,
    Lost,
    /// Half of the bytes arrived.
    Half,
    /// The length arrived, the bytes did not.
    Zeros,
}

/// Changes that a power loss treats alike, by their numbers.
#[derive(Clone, Debug)]
struct Group {
    what: String,
    path: PathBuf,
    changes: Vec<usize>,
    fates: &'static [Fate],
}

/// A power loss after so many calls, and what it did to what was not durable.
#[derive(Clone, Debug)]
pub(crate) struct Loss {
    pub(crate) moments: usize,
    fates: HashMap<usize, Fate>,
    words: Vec<String>,
}

impl Loss {
    fn of(moments: usize, groups: &[Group], chosen: &[Fate]) -> Loss {
        let mut loss = Loss { moments, fates: HashMap::new(), words: Vec::new() };
        for (group, fate) in groups.iter().zip(chosen) {
            loss.fates.extend(group.changes.iter().map(|number| (*number, *fate)));
            loss.words.push(format!("{} {}: {fate:?}", group.what, group.path.display()));
        }
        loss
    }

    fn fate(&self, change: usize) -> Fate {
        self.fates.get(&change).copied().unwrap_or(Fate::Kept)
    }
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "power lost after call {}, {}", self.moments, self.words.join(", "))
    }
}

/// All lost, all kept, one against the others in every way, and `samples` at random.
fn choices(groups: &[Group], samples: u64, rng: &mut Rng) -> Vec<Vec<Fate>> {
    let mut choices = vec![vec![Fate::Lost; groups.len()], vec![Fate::Kept; groups.len()]];
    for (at, group) in groups.iter().enumerate() {
        for fate in group.fates {
            let others = if *fate == Fate::Kept { Fate::Lost } else { Fate::Kept };
            let mut fates = vec![others; groups.len()];
            fates[at] = *fate;
            choices.push(fates);
        }
    }
    for _ in 0..if groups.len() > 2 { samples } else { 0 } {
        let mut fate = |group: &Group| group.fates[rng.below(group.fates.len() as u64) as usize];
        choices.push(groups.iter().map(&mut fate).collect());
    }
    choices
}

/// A folder as a power loss left it: files by their path inside it; `None` is a folder.
pub(crate) type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

impl Disk {
    /// The folder as it lies there now, all of it durable.
    pub(crate) fn of(root: &Path) -> Disk {
        let mut disk = Disk {
            root: root.to_owned(),
            objects: vec![Object::Folder],
            changes: Vec::new(),
            names: HashMap::from([(root.to_owned(), ROOT)]),
            moments: 0,
        };
        let mut open = vec![root.to_owned()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    disk.make(&path, Object::Folder);
                    open.push(path);
                } else {
                    let file = disk.make(&path, Object::File);
                    let bytes = fs::read(&path).unwrap();
                    disk.change(What::Bytes { file, offset: 0, bytes });
                }
            }
        }
        disk.changes.iter_mut().for_each(|change| change.durable = Some(0));
        disk.moments = 1;
        disk
    }

    /// Replays calls; `before` sees the disk before each of them.
    pub(crate) fn replay(&mut self, calls: &[Call], mut before: impl FnMut(&Disk, &Call)) {
        let first = self.moments;
        for call in calls {
            before(self, call);
            self.call(call, first);
            self.moments += 1;
        }
    }

    /// The disk as it was after the first `moments` calls.
    pub(crate) fn cut(&self, moments: usize) -> Disk {
        let early = self.changes.iter().filter(|change| change.moment < moments);
        let changes = early.map(|change| {
            let durable = change.durable.filter(|at| *at < moments);
            Change { durable, ..change.clone() }
        });
        let mut disk = Disk {
            root: self.root.clone(),
            objects: self.objects.clone(),
            changes: changes.collect(),
            names: HashMap::from([(self.root.clone(), ROOT)]),
            moments,
        };
        let mut open = vec![(ROOT, self.root.clone())];
        let whole = self.without_loss(moments);
        let names = self.names_after(&whole);
        while let Some((folder, path)) = open.pop() {
            for ((_, name), object) in names.range((folder, "")..(folder + 1, "")) {
                disk.names.insert(path.join(name), *object);
                open.push((*object, path.join(name)));
            }
        }
        disk
    }

    fn call(&mut self, call: &Call, first: usize) {
        match call {
            Call::Print { .. } => {}
            Call::Open { path, creates, empties } => match self.names.get(path) {
                None if *creates => {
                    self.make(path, Object::File);
                }
                Some(&file) if *empties => self.change(What::Length { file, bytes: 0 }),
                found => assert!(found.is_some(), "{} is not there", path.display()),
            },
            Call::Write { path, offset, bytes, durable } => {
                let file = self.object(path);
                let offset = offset.map_or_else(|| self.length(file), |offset| offset as usize);
                let from = self.changes.len();
                self.write(file, path, offset, bytes);
                if *durable {
                    let moment = self.moments;
                    self.changes[from..].iter_mut().for_each(|page| page.durable = Some(moment));
                }
            }
            Call::Truncate { path, bytes } => {
                let file = self.object(path);
                self.change(What::Length { file, bytes: *bytes as usize });
            }
            Call::Sync { path, began } => {
                let object = self.object(path);
                let (moment, began) = (self.moments, first + began);
                for change in self.changes.iter_mut().filter(|change| change.moment < began) {
                    if change.durable.is_none() && change.what.is_of(object) {
                        change.durable = Some(moment);
                    }
                }
            }
            Call::MakeFolder { path } => {
                self.make(path, Object::Folder);
            }
            Call::Rename { from, to } => {
                let object = self.object(from);
                let what = What::Moved { from: self.place(from), to: self.place(to), object };
                self.change(what);
                self.move_names(from, to);
            }
            Call::Link { from, to } => {
                let object = self.object(from);
                self.name(to, object);
            }
            Call::Remove { path } => {
                let (folder, name) = self.place(path);
                self.change(What::Name { folder, name, object: None });
                self.names.remove(path);
            }
        }
    }

    /// Notes a write; one of LMDB's page by page, since a disk may write those in any order.
    fn write(&mut self, file: usize, path: &Path, offset: usize, bytes: &[u8]) {
        if !is_lmdb(path) {
            return self.change(What::Bytes { file, offset, bytes: bytes.to_vec() });
        }
        let mut at = 0;
        while at < bytes.len() {
            let end = bytes.len().min(at + PAGE - (offset + at) % PAGE);
            self.change(What::Bytes { file, offset: offset + at, bytes: bytes[at..end].to_vec() });
            at = end;
        }
    }

    fn change(&mut self, what: What) {
        let is_of_lock = match &what {
            What::Bytes { file, .. } | What::Length { file, .. } => is_lock(&self.shown(*file)),
            What::Name { folder, name, object } => {
                object.is_none_or(|object| self.objects[object] == Object::File)
                    && is_lock(&self.shown(*folder).join(name))
            }
            What::Moved { .. } => false,
        };
        self.changes.push(Change { moment: self.moments, durable: None, is_of_lock, what });
    }

    fn make(&mut self, path: &Path, object: Object) -> usize {
        self.objects.push(object);
        self.name(path, self.objects.len() - 1);
        self.objects.len() - 1
    }

    fn name(&mut self, path: &Path, object: usize) {
        let (folder, name) = self.place(path);
        self.change(What::Name { folder, name, object: Some(object) });
        self.names.insert(path.to_owned(), object);
    }

    fn move_names(&mut self, from: &Path, to: &Path) {
        let moved: Vec<(PathBuf, usize)> = self
            .names
            .iter()
            .filter_map(|(path, object)| Some((path.strip_prefix(from).ok()?.to_owned(), *object)))
            .collect();
        for (below, object) in moved {
            self.names.remove(&join(from, &below));
            self.names.insert(join(to, &below), object);
        }
    }

    /// A file that was written after its name went keeps its name here.
    fn object(&self, path: &Path) -> usize {
        *self.names.get(path).unwrap_or_else(|| panic!("{} is not there", path.display()))
    }

    fn place(&self, path: &Path) -> (usize, String) {
        let name = path.file_name().expect("a name").to_str().expect("names are UTF-8");
        (self.object(path.parent().expect("a folder")), name.to_owned())
    }

    fn length(&self, wanted: usize) -> usize {
        self.changes.iter().fold(0, |length, change| match &change.what {
            What::Bytes { file, offset, bytes } if *file == wanted => {
                length.max(offset + bytes.len())
            }
            What::Length { file, bytes } if *file == wanted => *bytes,
            _ => length,
        })
    }

    /// Paths that exist now and that `wanted` accepts, sorted.
    pub(crate) fn paths(&self, wanted: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> =
            self.names.keys().filter(|path| wanted(path)).cloned().collect();
        paths.sort();
        paths
    }

    /// Whether every byte of the file is durable now.
    pub(crate) fn has_durable_bytes(&self, path: &Path) -> bool {
        let object = self.object(path);
        let bytes = |what: &What| match what {
            What::Bytes { file, .. } | What::Length { file, .. } => *file == object,
            What::Name { .. } | What::Moved { .. } => false,
        };
        self.changes.iter().all(|change| change.durable.is_some() || !bytes(&change.what))
    }

    /// The first name on the way from the root to `path` that is not durable now.
    pub(crate) fn unsynced_name(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.root).expect("below the root");
        let mut place = self.root.clone();
        for name in below.components() {
            let folder = self.object(&place);
            place.push(name);
            let name = place.file_name().and_then(|name| name.to_str()).expect("UTF-8");
            let gives = |what: &What| match what {
                What::Name { folder: found, name: given, .. }
                | What::Moved { to: (found, given), .. } => *found == folder && given == name,
                _ => false,
            };
            let last = self.changes.iter().rfind(|change| gives(&change.what));
            if last.is_none_or(|change| change.durable.is_none()) {
                return Some(place);
            }
        }
        None
    }

    pub(crate) fn is_folder(&self, path: &Path) -> bool {
        self.objects[self.object(path)] == Object::Folder
    }

    /// Whether nothing was written to the file yet.
    pub(crate) fn is_empty(&self, path: &Path) -> bool {
        self.length(self.object(path)) == 0
    }

    /// A name that moved and may be back after a power loss.
    pub(crate) fn unsynced_move(&self) -> Option<PathBuf> {
        self.changes.iter().find_map(|change| match &change.what {
            What::Moved { object, .. } if change.durable.is_none() => Some(self.shown(*object)),
            _ => None,
        })
    }

    /// Panics unless bytes and names of the file are durable now.
    #[track_caller]
    pub(crate) fn expect_durable(&self, path: &Path, before: &str) {
        let shown = path.display();
        assert!(
            self.has_durable_bytes(path),
            "before {before}, the bytes of {shown} are not synced"
        );
        if let Some(name) = self.unsynced_name(path) {
            panic!("before {before}, the name {} is not synced", name.display());
        }
    }

    /// What power losses at any time could do to what lies at the paths `of`, which begin below
    /// the root, all else kept:
    /// after every call everything or nothing of what was not durable, all but one and only one of
    /// it in every way, and `samples` more at random. None is in it twice.
    pub(crate) fn losses(
        &self,
        of: impl Fn(&Path) -> bool,
        samples: u64,
        rng: &mut Rng,
    ) -> Vec<Loss> {
        let mut seen = HashSet::new();
        let mut losses = Vec::new();
        for moments in 1..=self.moments {
            let groups: Vec<Group> =
                self.groups(moments).into_iter().filter(|group| of(&group.path)).collect();
            for fates in choices(&groups, samples, rng) {
                let loss = Loss::of(moments, &groups, &fates);
                if seen.insert(self.essence(&loss)) {
                    losses.push(loss);
                }
            }
        }
        losses
    }

    /// No loss: everything of the first `moments` calls.
    pub(crate) fn without_loss(&self, moments: usize) -> Loss {
        Loss::of(moments, &[], &[])
    }

    /// The loss of all that is not durable after the first `moments` calls.
    pub(crate) fn greatest_loss(&self, moments: usize) -> Loss {
        let groups = self.groups(moments);
        Loss::of(moments, &groups, &vec![Fate::Lost; groups.len()])
    }

    /// How many of the first `moments` calls it took until the file last got bytes that were
    /// durable at once, which is how LMDB commits.
    pub(crate) fn last_commit(&self, path: &Path, moments: usize) -> Option<usize> {
        let object = self.object(path);
        let commits = self.changes.iter().rev().filter(|change| {
            matches!(&change.what, What::Bytes { file, .. } if *file == object)
                && change.durable == Some(change.moment)
        });
        commits.map(|change| change.moment + 1).find(|after| *after <= moments)
    }

    /// What makes one loss another than the next: the changes that are left, but for locks.
    fn essence(&self, loss: &Loss) -> Vec<(usize, Fate)> {
        let mut left = Vec::new();
        for (number, change) in self.changes.iter().enumerate() {
            let fate = loss.fate(number);
            if change.moment < loss.moments && fate != Fate::Lost && !change.is_of_lock {
                left.push((number, fate));
            }
        }
        left
    }

    fn groups(&self, moments: usize) -> Vec<Group> {
        const NAMES: &[Fate] = &[Fate::Kept, Fate::Lost];
        const BYTES: &[Fate] = &[Fate::Kept, Fate::Lost, Fate::Half, Fate::Zeros];
        let mut groups: BTreeMap<(u8, usize), Group> = BTreeMap::new();
        for (number, change) in self.changes.iter().enumerate() {
            if change.moment >= moments || change.durable.is_some_and(|at| at < moments) {
                continue;
            }
            let (path, what) = match &change.what {
                What::Bytes { file, .. } | What::Length { file, .. } => {
                    (self.shown(*file), "bytes")
                }
                What::Name { folder, name, object } => {
                    let what = if object.is_some() { "name" } else { "removal" };
                    (self.shown(*folder).join(name), what)
                }
                What::Moved { to: (folder, name), .. } => (self.shown(*folder).join(name), "move"),
            };
            let (key, what, fates) = match &change.what {
                // All together: what locks hold means nothing to the next boot.
                _ if change.is_of_lock => ((0, 0), "locks, as".to_owned(), NAMES),
                What::Bytes { offset, .. } if is_lmdb(&path) => {
                    ((1, number), format!("page at {offset} of"), BYTES)
                }
                What::Bytes { file, .. } | What::Length { file, .. } => {
                    ((2, *file), what.to_owned(), BYTES)
                }
                What::Name { .. } | What::Moved { .. } => ((3, number), what.to_owned(), NAMES),
            };
            let group = Group { what, path, changes: Vec::new(), fates };
            groups.entry(key).or_insert(group).changes.push(number);
        }
        groups.into_values().collect()
    }

    /// The last name that an object got.
    fn shown(&self, wanted: usize) -> PathBuf {
        let mut path = PathBuf::new();
        let mut at = wanted;
        while at != ROOT {
            let named = self.changes.iter().rev().find_map(|change| match &change.what {
                What::Name { folder, name, object: Some(object) } if *object == at => {
                    Some((*folder, name))
                }
                What::Moved { to: (folder, name), object, .. } if *object == at => {
                    Some((*folder, name))
                }
                _ => None,
            });
            let (folder, name) = named.expect("everything had a name");
            path = join(Path::new(name), &path);
            at = folder;
        }
        path
    }

    /// The folder after a loss.
    pub(crate) fn image(&self, loss: &Loss) -> Image {
        self.image_of(loss, |_| true)
    }

    /// The same, but only what lies at the paths `of`.
    pub(crate) fn image_of(&self, loss: &Loss, of: impl Fn(&Path) -> bool) -> Image {
        let names = self.names_after(loss);
        let mut image = Image::new();
        let mut open = vec![(ROOT, PathBuf::new())];
        while let Some((folder, path)) = open.pop() {
            for ((_, name), object) in names.range((folder, "")..(folder + 1, "")) {
                let path = path.join(name);
                if !of(&path) {
                    continue;
                }
                if self.objects[*object] == Object::Folder {
                    open.push((*object, path.clone()));
                    image.insert(path, None);
                } else {
                    image.insert(path, Some(self.bytes_after(loss, *object)));
                }
            }
        }
        image
    }

    /// One file after a loss; `None` where it is not there.
    pub(crate) fn file(&self, loss: &Loss, path: &Path) -> Option<Vec<u8>> {
        let names = self.names_after(loss);
        let mut object = ROOT;
        for name in path.strip_prefix(&self.root).expect("below the root").iter() {
            object = *names.get(&(object, name.to_str().expect("UTF-8")))?;
        }
        Some(self.bytes_after(loss, object))
    }

    /// What is left of the first calls, in order.
    fn left<'d>(&'d self, loss: &'d Loss) -> impl Iterator<Item = (Fate, &'d What)> {
        let numbered = self.changes.iter().enumerate();
        let early = numbered.take_while(|(_, change)| change.moment < loss.moments);
        let fates = early.map(|(number, change)| (loss.fate(number), &change.what));
        fates.filter(|(fate, _)| *fate != Fate::Lost)
    }

    fn names_after<'d>(&'d self, loss: &'d Loss) -> BTreeMap<(usize, &'d str), usize> {
        let mut names: BTreeMap<(usize, &str), usize> = BTreeMap::new();
        for (_, what) in self.left(loss) {
            match what {
                What::Name { folder, name, object: Some(object) } => {
                    names.insert((*folder, name), *object);
                }
                What::Name { folder, name, object: None } => {
                    names.remove(&(*folder, name.as_str()));
                }
                What::Moved { from, to, object } => {
                    names.remove(&(from.0, from.1.as_str()));
                    names.insert((to.0, &to.1), *object);
                }
                What::Bytes { .. } | What::Length { .. } => {}
            }
        }
        names
    }

    fn bytes_after(&self, loss: &Loss, wanted: usize) -> Vec<u8> {
        let mut held = Vec::new();
        for (fate, what) in self.left(loss) {
            match what {
                What::Bytes { file, offset, bytes } if *file == wanted => {
                    let length = if fate == Fate::Half { bytes.len() / 2 } else { bytes.len() };
                    let end = offset + length;
                    held.resize(held.len().max(end), 0);
                    match fate {
                        Fate::Zeros => held[*offset..end].fill(0),
                        _ => held[*offset..end].copy_from_slice(&bytes[..length]),
                    }
                }
                What::Length { file, bytes } if *file == wanted => held.resize(*bytes, 0),
                _ => {}
            }
        }
        held
    }
}

impl What {
    /// Whether a sync of the object makes this durable.
    fn is_of(&self, object: usize) -> bool {
        match self {
            What::Bytes { file, .. } | What::Length { file, .. } => *file == object,
            What::Name { folder, .. } => *folder == object,
            What::Moved { from, to, .. } => from.0 == object || to.0 == object,
        }
    }
}

/// Makes `root` the folder of an image.
pub(crate) fn lay_out(image: &Image, root: &Path) {
    if root.exists() {
        fs::remove_dir_all(root).unwrap();
    }
    fs::create_dir_all(root).unwrap();
    for (path, bytes) in image {
        let path = root.join(path);
        match bytes {
            None => fs::create_dir(&path).unwrap(),
            Some(bytes) => fs::write(&path, bytes).unwrap(),
        }
    }
}

fn join(path: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { path.to_owned() } else { path.join(below) }
}

/// An LMDB file, under its name or before it has it.
pub(crate) fn is_lmdb(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("data.mdb")
}

/// A file that only processes of one boot speak by, one whose bytes mean nothing, or the tests' own.
pub(crate) fn is_lock(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_in_locks = path.parent().is_some_and(|folder| folder.ends_with("locks"));
    is_in_locks
        || name.ends_with(".lock")
        || ["lock.mdb", "in-use", "ballast", HITS].contains(&name)
}
