//! An object store that fails: the chain's objects behind a world.
//!
//! Nothing is written here: a restore only reads. What a request meets is decided by its
//! object and by how often that was asked for, so that requests on the way at once do not
//! depend on one another's order.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};

use crate::world::{StoreFate, World};

/// What became of an object where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It is gone.
    Missing,
    /// It ends after so many bytes.
    Torn(u64),
    /// The bit of that number is another.
    Flipped(u64),
}

/// The objects of a chain, as a client meets them.
#[derive(Clone, Debug)]
pub struct SimStore {
    objects: Arc<InMemory>,
    world: Arc<World>,
    damage: Arc<Mutex<BTreeMap<String, Damage>>>,
}

impl SimStore {
    /// The store of `objects`.
    pub fn new(objects: Arc<InMemory>, world: Arc<World>) -> SimStore {
        SimStore { objects, world, damage: Arc::default() }
    }

    /// Damages an object.
    pub fn damage(&self, path: &str, damage: Damage) {
        let mut all = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(path.to_owned(), damage);
    }

    /// Puts every object back from a copy of the collection; whether any was damaged.
    pub fn mend(&self) -> bool {
        let mut all = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        !std::mem::take(&mut *all).is_empty()
    }

    fn damage_of(&self, path: &Path) -> Option<Damage> {
        let all = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(path.as_ref()).copied()
    }

    /// What becomes of a request.
    fn fate(&self, verb: &str, path: &Path) -> object_store::Result<Option<u64>> {
        match self.world.store_fate(&format!("{verb} {path}")) {
            StoreFate::Answered => Ok(None),
            StoreFate::Flipped(bit) => Ok(Some(bit)),
            StoreFate::Failed(why) => Err(failed(why)),
        }
    }

    /// A store that holds `path` with a flipped bit or torn off.
    async fn altered(
        &self,
        path: &Path,
        alter: impl FnOnce(&mut Vec<u8>),
    ) -> object_store::Result<InMemory> {
        let mut bytes = self.objects.get(path).await?.bytes().await?.to_vec();
        alter(&mut bytes);
        let altered = InMemory::new();
        altered.put(path, Bytes::from(bytes).into()).await?;
        Ok(altered)
    }
}

fn failed(why: &'static str) -> object_store::Error {
    object_store::Error::Generic { store: "simulated", source: why.into() }
}

fn flip(bytes: &mut [u8], bit: u64) {
    if !bytes.is_empty() {
        let bit = bit % (bytes.len() as u64 * 8);
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulated store")
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(
        &self,
        _: &Path,
        _: PutPayload,
        _: PutOptions,
    ) -> object_store::Result<PutResult> {
        Err(failed("nothing is written here"))
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(failed("nothing is written here"))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let verb = if options.head { "head" } else { "get" };
        let flipped = self.fate(verb, path)?;
        let damage = self.damage_of(path);
        if damage == Some(Damage::Missing) {
            let source = "it was removed".into();
            return Err(object_store::Error::NotFound { path: path.to_string(), source });
        }
        let asked = options.range.clone();
        let bit = match damage {
            Some(Damage::Flipped(bit)) => Some(bit),
            Some(Damage::Missing | Damage::Torn(_)) | None => None,
        };
        if let Some(Damage::Torn(left)) = damage {
            let torn = self.altered(path, |bytes| bytes.truncate(left as usize)).await?;
            return torn.get_opts(path, options).await;
        }
        if let (Some(bit), false) = (bit, options.head) {
            let altered = self.altered(path, |bytes| flip(bytes, bit)).await?;
            return altered.get_opts(path, options).await;
        }
        let Some(bit) = flipped.filter(|_| !options.head) else {
            return self.objects.get_opts(path, options).await;
        };
        // The flip hits what was asked for, wherever in the object that is.
        let altered = self
            .altered(path, |bytes| {
                let whole = 0..bytes.len();
                let range = match asked {
                    Some(object_store::GetRange::Bounded(range)) => {
                        let end = (range.end as usize).min(bytes.len());
                        (range.start as usize).min(end)..end
                    }
                    _ => whole,
                };
                flip(&mut bytes[range], bit);
            })
            .await?;
        altered.get_opts(path, options).await
    }

    async fn get_ranges(
        &self,
        path: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        self.fate("get ranges", path)?;
        self.objects.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.objects.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        // An answer that fails is asked for again by the client; a list is one answer here.
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> object_store::Result<()> {
        Err(failed("nothing is written here"))
    }
}
