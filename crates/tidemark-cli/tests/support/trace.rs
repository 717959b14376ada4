//! The system calls by which a process of the real binary changes files, as `strace` saw them.
//!
//! Nothing is left out: a call that would change a file in a way that is not understood here
//! ends the test.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use super::{Outcome, Tidemark};

/// Every call that gives a file bytes or a name, or makes either durable; and those that are
/// needed to know where the bytes go.
const CALLS: &str = "trace=open,openat,openat2,creat,close,lseek,write,writev,pwrite64,pwritev,\
    pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice,mmap,msync,fsync,\
    fdatasync,syncfs,sync,sync_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,\
    unlink,unlinkat,rmdir,mkdir,mkdirat,mknod,mknodat";

/// One successful call; paths are absolute.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A file was opened for writing, and made or emptied where the flags say so.
    Open { path: PathBuf, creates: bool, empties: bool },
    /// Bytes went into a file; at its end where `offset` is `None`.
    Write { path: PathBuf, offset: Option<u64>, bytes: Vec<u8>, durable: bool },
    /// A file got a length.
    Truncate { path: PathBuf, bytes: u64 },
    /// A file or a directory was synced. The sync began when the calls before `began` had ended.
    Sync { path: PathBuf, began: usize },
    /// A directory was made.
    MakeFolder { path: PathBuf },
    /// A name moved.
    Rename { from: PathBuf, to: PathBuf },
    /// A file got another name.
    Link { from: PathBuf, to: PathBuf },
    /// A name of a file or a directory went.
    Remove { path: PathBuf },
    /// Something was printed on standard output.
    Print { text: String },
}

/// Runs the command in `root` under `strace`; how it ended, and its calls that concern what lies
/// in `root`, in the order in which they ended.
pub(crate) fn record(tidemark: &Tidemark, root: &Path, args: &[&str]) -> (Outcome, Vec<Call>) {
    let log = root.with_extension("strace");
    let outcome = tidemark.with_trace(&log, &[CALLS]).run(args);
    let calls = read(&log, root, &outcome);
    (outcome, calls)
}

fn read(log: &Path, root: &Path, outcome: &Outcome) -> Vec<Call> {
    let text = std::fs::read_to_string(log)
        .unwrap_or_else(|cause| panic!("strace wrote no {}: {cause}\n{outcome}", log.display()));
    let mut reader =
        Reader { root, calls: Vec::new(), begun: HashMap::new(), files: HashMap::new() };
    text.lines().for_each(|line| reader.line(line));
    reader.calls
}

struct Reader<'r> {
    root: &'r Path,
    calls: Vec<Call>,
    /// Calls that have not ended, by thread: how many had ended when it began, and its text.
    begun: HashMap<String, (usize, String)>,
    files: HashMap<u64, OpenFile>,
}

/// What an open file needs to know for a write.
#[derive(Clone, Copy)]
struct OpenFile {
    at: u64,
    appends: bool,
    is_durable: bool,
}

impl Reader<'_> {
    fn line(&mut self, line: &str) {
        const UNFINISHED: &str = " <unfinished ...>";
        let (thread, text) = line.split_once(' ').expect("strace -f begins with the thread");
        let text = text.trim_start();
        if text.starts_with("+++") || text.starts_with("---") {
            return;
        }
        if let Some(descriptor) = text.strip_prefix("close(") {
            // Its number is free as soon as the call begins.
            self.files.remove(&number(descriptor).expect("a descriptor"));
        }
        if let Some(begin) = text.strip_suffix(UNFINISHED) {
            self.begun.insert(thread.to_owned(), (self.calls.len(), begin.to_owned()));
        } else if let Some(rest) = text.strip_prefix("<... ") {
            let (_, end) = rest.split_once(" resumed>").expect("strace resumes a call");
            let (began, begin) = self.begun.remove(thread).expect("it was begun");
            self.call(began, &(begin + end));
        } else {
            self.call(self.calls.len(), text);
        }
    }

    fn call(&mut self, began: usize, text: &str) {
        // Strings are hexadecimal, so nothing in them looks like what is around them.
        let (name, rest) = text.split_once('(').unwrap_or_else(|| panic!("no call: {text}"));
        let (args, result) = rest.rsplit_once(" = ").unwrap_or_else(|| panic!("no end: {text}"));
        let args = args.trim_end().strip_suffix(')').unwrap_or_else(|| panic!("no end: {text}"));
        let Some(result) = number(result) else { return };
        let args = split(args);
        if name == "close" {
            return;
        }
        if let Some(call) = self.understand(name, &args, result, began) {
            self.calls.push(call);
        }
    }

    fn understand(&mut self, name: &str, args: &[&str], result: u64, began: usize) -> Option<Call> {
        let place = |at: &str, path: &str| self.inside(&opened(at).join(string(path)));
        // These calls do not say where they begin: the command runs in the root.
        let here = |path: &str| self.inside(&self.root.join(string(path)));
        match name {
            "open" | "creat" | "openat2" | "syncfs" | "sync" | "truncate" | "mknod" | "mknodat" => {
                panic!("{name} is not expected: {args:?}")
            }
            "openat" => self.open(args, result),
            "lseek" => {
                if let Some(file) = self.files.get_mut(&number(args[0])?) {
                    file.at = result;
                }
                None
            }
            "write" | "writev" if number(args[0]) == Some(1) => {
                Some(Call::Print { text: String::from_utf8_lossy(&bytes(args[1])).into_owned() })
            }
            "write" | "writev" | "pwrite64" | "pwritev" => self.write(name, args, result),
            "fsync" | "fdatasync" => {
                Some(Call::Sync { path: self.inside(&opened(args[0]))?, began })
            }
            "ftruncate" => {
                let path = self.inside(&opened(args[0]))?;
                Some(Call::Truncate { path, bytes: number(args[1])? })
            }
            "mkdir" => Some(Call::MakeFolder { path: here(args[0])? }),
            "mkdirat" => Some(Call::MakeFolder { path: place(args[0], args[1])? }),
            "rename" => Some(Call::Rename { from: here(args[0])?, to: here(args[1])? }),
            "renameat" | "renameat2" => {
                Some(Call::Rename { from: place(args[0], args[1])?, to: place(args[2], args[3])? })
            }
            "link" => Some(Call::Link { from: here(args[0])?, to: here(args[1])? }),
            "linkat" => {
                Some(Call::Link { from: place(args[0], args[1])?, to: place(args[2], args[3])? })
            }
            "unlink" | "rmdir" => Some(Call::Remove { path: here(args[0])? }),
            "unlinkat" => Some(Call::Remove { path: place(args[0], args[1])? }),
            // Room for bytes, none of which is written: the file is as it was, but longer.
            "fallocate" => {
                let path = self.inside(&opened(args[0]))?;
                let bytes = number(args[2])? + number(args[3])?;
                Some(Call::Truncate { path, bytes })
            }
            "mmap" => {
                let shared = args[3].contains("MAP_SHARED") && args[2].contains("PROT_WRITE");
                let path = self.inside(&opened(args[4])).filter(|_| shared)?;
                // LMDB's table of readers, which means nothing after the machine stopped.
                assert!(path.ends_with("lock.mdb"), "{} is written as memory", path.display());
                None
            }
            _ => {
                let path = args.iter().find_map(|arg| self.inside(&opened(arg)));
                assert!(path.is_none(), "{name} changes {path:?}");
                None
            }
        }
    }

    fn open(&mut self, args: &[&str], descriptor: u64) -> Option<Call> {
        let path = self.inside(&opened(args[0]).join(string(args[1])))?;
        let has = |flag: &str| args[2].split('|').any(|found| found == flag);
        if has("O_RDONLY") || has("O_PATH") {
            return None;
        }
        assert!(!has("O_TMPFILE"), "{} has no name", path.display());
        let is_durable = has("O_DSYNC") || has("O_SYNC");
        self.files.insert(descriptor, OpenFile { at: 0, appends: has("O_APPEND"), is_durable });
        Some(Call::Open { path, creates: has("O_CREAT"), empties: has("O_TRUNC") })
    }

    fn write(&mut self, name: &str, args: &[&str], written: u64) -> Option<Call> {
        let path = self.inside(&opened(args[0]))?;
        let file = self.files.get_mut(&number(args[0])?);
        let file = file.unwrap_or_else(|| panic!("{} was never opened", path.display()));
        let mut bytes = bytes(args[1]);
        bytes.truncate(written as usize);
        assert_eq!(bytes.len() as u64, written, "strace left bytes out");
        let offset = match name {
            "pwrite64" | "pwritev" => Some(number(args.last()?)?),
            _ if file.appends => None,
            _ => {
                file.at += written;
                Some(file.at - written)
            }
        };
        Some(Call::Write { path, offset, bytes, durable: file.is_durable })
    }

    /// The path, if it lies below the root.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let mut plain = PathBuf::new();
        for component in path.components() {
            match component {
                Component::CurDir => {}
                Component::ParentDir => {
                    plain.pop();
                }
                other => plain.push(other),
            }
        }
        plain.starts_with(self.root).then_some(plain)
    }
}

/// Arguments, split at the commas between them.
fn split(args: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut from) = (0, false, 0);
    let mut found = Vec::new();
    for (at, byte) in args.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'[' | b'{' | b'<' | b'(' if !quoted => depth += 1,
            b']' | b'}' | b'>' | b')' if !quoted => depth -= 1,
            b',' if !quoted && depth == 0 => {
                found.push(args[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    found.push(args[from..].trim());
    found
}

/// The number that a word begins with; `None` for an error.
fn number(word: &str) -> Option<u64> {
    if let Some(digits) = word.strip_prefix("0x") {
        return u64::from_str_radix(digits.split(' ').next()?, 16).ok();
    }
    let end = word.find(|char: char| !char.is_ascii_digit()).unwrap_or(word.len());
    word[..end].parse().ok()
}

/// All quoted bytes of an argument, one after another.
fn bytes(arg: &str) -> Vec<u8> {
    assert!(!arg.contains("\"..."), "strace shortened a string");
    arg.split('"').skip(1).step_by(2).flat_map(unhex).collect()
}

fn unhex(text: &str) -> impl Iterator<Item = u8> {
    let digits = text.split("\\x").skip(1);
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("strace writes hexadecimal"))
}

fn string(arg: &str) -> PathBuf {
    PathBuf::from(String::from_utf8(bytes(arg)).expect("paths of tests are UTF-8"))
}

/// What a descriptor is open on, as in `7<PATH>` and `AT_FDCWD<PATH>`; empty if none is named.
fn opened(arg: &str) -> PathBuf {
    let Some((_, rest)) = arg.split_once('<') else { return PathBuf::new() };
    let path = rest.split('>').next().unwrap_or_default();
    let plain = unhex(path).collect();
    PathBuf::from(String::from_utf8(plain).expect("paths of tests are UTF-8"))
}
