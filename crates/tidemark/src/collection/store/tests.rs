use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::ops::Range;

use async_trait::async_trait;
use futures_core::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    PutMultipartOptions, PutPayload, PutResult,
};
use parquet::file::reader::{ChunkReader, Length};

use super::*;
use crate::collection::fixture::TestEnv;

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ailment {
    /// Creating replaces and says that all is well.
    IgnoresCreateOnly,
    /// Reads are never answered.
    Hangs,
    /// Ranges come back short.
    CutsAnswers,
}

#[derive(Debug)]
struct AilingStore {
    ailment: Ailment,
    inner: InMemory,
}

impl fmt::Display for AilingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.ailment)
    }
}

#[async_trait]
impl ObjectStore for AilingStore {
    async fn put_opts(
        &self,
        path: &Path,
        bytes: PutPayload,
        mut options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if self.ailment == Ailment::IgnoresCreateOnly {
            options.mode = PutMode::Overwrite;
        }
        self.inner.put_opts(path, bytes, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(
        &self,
        path: &Path,
        mut options: GetOptions,
    ) -> object_store::Result<GetResult> {
        match (self.ailment, &mut options.range) {
            (Ailment::Hangs, _) if !options.head => std::future::pending().await,
            (Ailment::CutsAnswers, Some(object_store::GetRange::Bounded(range))) => {
                range.end -= 1;
            }
            _ => {}
        }
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(
        &self,
        path: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn ailing(ailment: Ailment) -> Store {
    Store::over("ailing", Arc::new(AilingStore { ailment, inner: InMemory::new() }))
}

/// Every kind of store that there is, each empty.
fn every_store(dir: &tempfile::TempDir) -> Vec<Store> {
    let generic = dir.path().join("generic");
    fs::create_dir(&generic).unwrap();
    let generic = LocalFileSystem::new_with_prefix(generic).unwrap();
    vec![
        Store::open(dir.path().join("deep/folder").to_str().unwrap()).unwrap(),
        Store::in_memory(),
        Store::over("generic", Arc::new(generic)),
    ]
}

fn names(store: &Store) -> Vec<String> {
    store.list("").unwrap().into_iter().map(|object| object.path).collect()
}

#[test]
fn objects_are_created_once_and_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    for store in every_store(&dir) {
        assert_eq!(store.put_new("a/b", b"one").unwrap(), PutOutcome::Created, "{store:?}");
        assert_eq!(store.put_new("a/b", b"two").unwrap(), PutOutcome::Exists);
        assert_eq!(store.get("a/b", 3).unwrap(), b"one");
        let mut writer = store.create("a/b").unwrap();
        writer.write_all(b"three").unwrap();
        assert_eq!(writer.finish().unwrap_err().kind(), Kind::Held);
        assert_eq!(store.get("a/b", 3).unwrap(), b"one");
        assert_eq!(names(&store), ["a/b"]);
    }
}

#[test]
fn what_was_written_is_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    // More than two requests of an upload, and not a multiple of anything.
    let bytes: Vec<u8> =
        (0..11_000_003u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    for store in every_store(&dir) {
        let written = store.upload_from("t/part", &mut bytes.as_slice()).unwrap();
        assert_eq!(written, bytes.len() as u64);
        let hash = store.hash("t/part").unwrap();
        assert_eq!(hash, ObjectHash { bytes: written, blake3: blake3.clone() });
        assert_eq!(store.size("t/part").unwrap(), Some(written));

        let object = store.open_for_reading("t/part").unwrap();
        assert_eq!(object.len(), written);
        assert_eq!(object.get_bytes(5_000_000, 9).unwrap(), bytes[5_000_000..5_000_009]);
        let mut tail = Vec::new();
        object.get_read(10_900_000).unwrap().read_to_end(&mut tail).unwrap();
        assert_eq!(tail, bytes[10_900_000..]);
        assert_eq!(object.read_at(written - 1, 2).unwrap_err().kind(), Kind::Broken);
        assert_eq!(object.read_at(u64::MAX, 2).unwrap_err().kind(), Kind::Broken);
        assert!(object.read_at(written, 0).unwrap().is_empty());

        assert_eq!(store.upload_from("t/empty", &mut &b""[..]).unwrap(), 0);
        assert_eq!(store.get("t/empty", 0).unwrap(), b"");
    }
}

#[test]
fn an_upload_over_something_that_is_there_is_refused() {
    let store = Store::in_memory();
    store.put_new("part", b"first").unwrap();
    let large = vec![7; 6 << 20];
    assert_eq!(store.upload_from("part", &mut large.as_slice()).unwrap_err().kind(), Kind::Held);
    assert_eq!(store.get("part", 5).unwrap(), b"first");
}

#[test]
fn nothing_is_seen_before_it_is_finished_and_nothing_stays_of_the_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    for store in every_store(&dir) {
        let mut writer = store.create("a/part").unwrap();
        writer.write_all(&vec![1; 6 << 20]).unwrap();
        assert_eq!(store.size("a/part").unwrap(), None);
        assert!(names(&store).iter().all(|name| folder::is_draft(name)), "{store:?}");
        drop(writer);
        assert_eq!(store.put_new("a/part", b"x").unwrap(), PutOutcome::Created);
        assert_eq!(names(&store).iter().filter(|name| !name.contains('#')).count(), 1);
    }
}

#[test]
fn a_finished_write_leaves_no_draft_and_a_crash_leaves_one_that_is_seen_and_removable() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    store.put_new("log/000001.json", b"{}").unwrap();
    assert_eq!(names(&store), ["log/000001.json"]);

    let mut writer = store.create("d/part").unwrap();
    writer.write_all(b"half").unwrap();
    // The process dies here: nothing is dropped.
    std::mem::forget(writer);
    let left = store.list("d").unwrap();
    assert_eq!(left.len(), 1);
    assert!(left[0].is_draft() && left[0].bytes == 4, "{left:?}");

    assert_eq!(store.put_new("d/part", b"whole").unwrap(), PutOutcome::Created);
    store.delete(&left[0].path).unwrap();
    assert_eq!(names(&store), ["d/part", "log/000001.json"]);
    store.delete("d/part").unwrap();
    store.delete("d/part").unwrap();
    assert!(!dir.path().join("d").exists(), "the emptied folder goes too");
    assert_eq!(store.put_new("d/part", b"again").unwrap(), PutOutcome::Created);
}

#[test]
fn of_many_writers_of_one_name_exactly_one_creates_it() {
    let dir = tempfile::tempdir().unwrap();
    for store in every_store(&dir) {
        let created: usize = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8u8)
                .map(|writer| {
                    let store = store.clone();
                    scope.spawn(move || store.put_new("x/y/one", &[writer; 1000]).unwrap())
                })
                .collect();
            let outcomes = writers.into_iter().map(|writer| writer.join().unwrap());
            outcomes.filter(|outcome| *outcome == PutOutcome::Created).count()
        });
        assert_eq!(created, 1, "{store:?}");
        let kept = store.get("x/y/one", 1000).unwrap();
        assert!(kept.len() == 1000 && kept.iter().all(|byte| *byte == kept[0]));
        assert_eq!(names(&store), ["x/y/one"]);
    }
}

#[test]
fn an_object_larger_than_expected_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for store in every_store(&dir) {
        store.put_new("a", b"12345").unwrap();
        let error = store.get("a", 4).unwrap_err();
        assert_eq!(error.kind(), Kind::Broken);
        assert!(error.message().contains("5 bytes") && error.message().contains("at most 4"));
        let many = ["a".to_owned(), "a".to_owned()];
        assert_eq!(store.get_many(&many, 4).unwrap_err().kind(), Kind::Broken);
        assert_eq!(store.get_many(&many, 5).unwrap(), [b"12345", b"12345"]);
    }
}

#[test]
fn what_is_missing_is_not_found_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    for store in every_store(&dir) {
        for error in [
            store.get("no/such", 9).unwrap_err(),
            store.open_for_reading("no/such").unwrap_err(),
            store.hash("no/such").unwrap_err(),
            store.get_many(&["no".to_owned()], 9).unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::NotFound, "{error}");
        }
        assert!(store.list("no").unwrap().is_empty());
        store.delete("no/such").unwrap();
    }
}

#[test]
fn paths_that_leave_the_store_are_refused_by_every_call() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("secret"), b"s").unwrap();
    for store in every_store(&dir) {
        for path in ["../secret", "/etc/passwd", "a/../../secret", "a//b", "", "a\\b", "a#1"] {
            let kinds = [
                store.get(path, 9).unwrap_err().kind(),
                store.put_new(path, b"x").unwrap_err().kind(),
                store.create(path).unwrap_err().kind(),
                store.open_for_reading(path).unwrap_err().kind(),
                store.get_many(&[path.to_owned()], 9).unwrap_err().kind(),
            ];
            assert_eq!(kinds, [Kind::Usage; 5], "{path}");
        }
        for path in ["../secret", "../secret#1", ""] {
            assert_eq!(store.delete(path).unwrap_err().kind(), Kind::Usage);
        }
        assert_eq!(store.list("..").unwrap_err().kind(), Kind::Usage);
    }
    assert!(dir.path().join("secret").exists());
}

#[test]
fn encoded_names_are_taken_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for store in every_store(&dir) {
        store.put_new("s.a%2Fb%25/00000-1a.parquet", b"x").unwrap();
        assert_eq!(names(&store), ["s.a%2Fb%25/00000-1a.parquet"]);
        assert_eq!(store.list("s.a%2Fb%25").unwrap().len(), 1);
        assert_eq!(store.hash("s.a%2Fb%25/00000-1a.parquet").unwrap().bytes, 1);
    }
}

#[test]
fn a_store_that_replaces_objects_is_refused_for_writing() {
    let env = TestEnv::new();
    let store = ailing(Ailment::IgnoresCreateOnly);
    let error = store.prove_create_only(&env).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(names(&store).is_empty(), "the probe is removed");

    let dir = tempfile::tempdir().unwrap();
    for store in every_store(&dir) {
        store.prove_create_only(&env).unwrap();
        store.prove_create_only(&env).unwrap();
        assert!(names(&store).is_empty());
    }
}

#[test]
fn a_hung_read_ends_at_the_deadline_and_says_so() {
    let store = ailing(Ailment::Hangs).with_request_deadline(Duration::from_millis(20));
    store.put_new("a", b"x").unwrap();
    let object = store.open_for_reading("a").unwrap();
    for error in [store.get("a", 1).unwrap_err(), object.read_at(0, 1).unwrap_err()] {
        assert_eq!(error.kind(), Kind::Transient);
        assert!(error.message().contains("no answer within 20 ms"), "{error}");
        assert!(error.message().contains("`a`"), "{error}");
    }
}

#[test]
fn a_short_answer_is_retried_not_believed() {
    let store = ailing(Ailment::CutsAnswers);
    store.put_new("a", b"12345").unwrap();
    let object = store.open_for_reading("a").unwrap();
    assert_eq!(object.read_at(1, 3).unwrap_err().kind(), Kind::Transient);
}

#[test]
fn a_place_says_whether_it_is_missing_empty_or_taken() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| Store::open(dir.path().join(name).to_str().unwrap()).unwrap();
    assert_eq!(at("none").place().unwrap(), Place::Missing);
    fs::create_dir_all(dir.path().join("mount/lost+found")).unwrap();
    fs::write(dir.path().join("mount/.DS_Store"), b"").unwrap();
    assert_eq!(at("mount").place().unwrap(), Place::Empty);
    fs::write(dir.path().join("mount/letter"), b"").unwrap();
    assert_eq!(at("mount").place().unwrap(), Place::Occupied(vec!["letter".to_owned()]));

    let memory = Store::in_memory();
    assert_eq!(memory.place().unwrap(), Place::Empty);
    memory.put_new("log/000001.json", b"").unwrap();
    assert_eq!(memory.place().unwrap(), Place::Occupied(vec!["log".to_owned()]));
}

#[test]
fn stores_are_named_by_paths_and_urls() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("with space");
    let by_path = Store::open(folder.to_str().unwrap()).unwrap();
    by_path.put_new("a", b"x").unwrap();
    let url = format!("file://{}/with%20space", dir.path().display());
    assert_eq!(Store::open(&url).unwrap().get("a", 1).unwrap(), b"x");

    for (url, says) in [
        ("s3://bucket/path", "object stores cannot be reached yet"),
        ("gs://bucket", "object stores cannot be reached yet"),
        ("ftp://host/x", "no place for a collection"),
        ("file://host/x", "not a file URL"),
        ("", "is empty"),
        (folder.join("a").to_str().unwrap(), "is a file"),
    ] {
        let error = Store::open(url).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.message().contains(says), "{error}");
    }
}

#[test]
fn a_full_disk_asks_for_a_person_and_a_misplaced_file_is_broken() {
    let dir = tempfile::tempdir().unwrap();
    // `/dev/full` stands for the disk: a draft is an ordinary file, so its write is tried here.
    let mut full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let cause = full.write_all(b"x").unwrap_err();
    assert_eq!(kind_of_cause(&cause), Some(Kind::Blocked));
    // A file where a folder should be.
    fs::write(dir.path().join("log"), b"").unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    assert_eq!(store.put_new("log/000001.json", b"x").unwrap_err().kind(), Kind::Broken);
}
