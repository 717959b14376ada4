//! The parts of one link of a chain, read as one stream.

use std::collections::VecDeque;
use std::fmt;

use super::key_text;
use crate::collection::manifest::PartEntry;
use crate::error::{Error, Kind, Result};
use crate::row::{KeyRange, RowBatch, RowStream};

/// Opens one part of a link for reading.
pub type OpenPart<'a> = Box<dyn FnMut(&PartEntry) -> Result<Box<dyn RowStream + 'a>> + Send + 'a>;

/// The rows of one link: its parts one after the other, one open at a time.
pub struct LinkReader<'a> {
    parts: VecDeque<PartEntry>,
    open_part: OpenPart<'a>,
    current: Option<Box<dyn RowStream + 'a>>,
}

impl<'a> LinkReader<'a> {
    /// A stream over those of `parts`, in key order, that may hold keys of `range` beyond `after`.
    ///
    /// # Errors
    /// [`Kind::Broken`] if the parts' key ranges overlap or are out of order.
    pub fn new(
        parts: &[PartEntry],
        range: &KeyRange,
        after: Option<&[u8]>,
        open_part: OpenPart<'a>,
    ) -> Result<LinkReader<'a>> {
        if let Some(pair) = parts.windows(2).find(|pair| pair[0].last_key >= pair[1].first_key) {
            // Parts of a table without a key have no keys to compare.
            if !(pair[0].last_key.is_empty() && pair[1].first_key.is_empty()) {
                let message = format!(
                    "part `{}` begins with key {}, but `{}` before it ends with {}",
                    pair[1].name,
                    key_text(&pair[1].first_key),
                    pair[0].name,
                    key_text(&pair[0].last_key)
                );
                return Err(Error::new(Kind::Broken, message));
            }
        }
        let inside = |part: &&PartEntry| {
            range.overlaps(&part.first_key, &part.last_key)
                && after.is_none_or(|after| *part.last_key > *after)
        };
        let parts = parts.iter().filter(inside).cloned().collect();
        Ok(LinkReader { parts, open_part, current: None })
    }
}

impl RowStream for LinkReader<'_> {
    fn next_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        batch.clear();
        self.append_batch(batch).inspect_err(|_| batch.clear())
    }

    fn append_batch(&mut self, batch: &mut RowBatch) -> Result<bool> {
        loop {
            if let Some(current) = &mut self.current
                && current.append_batch(batch)?
            {
                return Ok(true);
            }
            // Closed before the next one is opened, so that one part's memory is enough.
            self.current = None;
            let Some(part) = self.parts.pop_front() else { return Ok(false) };
            self.current = Some((self.open_part)(&part)?);
        }
    }
}

impl fmt::Debug for LinkReader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkReader").field("parts_left", &self.parts.len()).finish_non_exhaustive()
    }
}
