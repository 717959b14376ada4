//! `steering`: a request for whoever holds an operation.
//!
//! Written by any process, removed by the holder in the commit that reflects it. Key:
//! operation `u64`, number `u64`, both big-endian; numbers grow. Value, version 1: u8: 0 resume,
//! 1 cancel, 2 window (varint), 3 pause (u8 by: 0 person, 1 obstacle; text why).

use crate::catalog::codec::{Reader, Writer};
use crate::error::Result;
use crate::ids::OperationId;
use crate::operation::{PausedBy, Request};

const NAME: &str = "steering";
const VERSION: u8 = 1;

pub(in crate::catalog) fn key(operation: OperationId, number: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&operation.0.to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

pub(in crate::catalog) fn number_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(8..16)?.try_into().ok()?))
}

pub(in crate::catalog) fn encode(request: &Request) -> Vec<u8> {
    let mut out = Writer::new(VERSION);
    match request {
        Request::Resume => out.u8(0),
        Request::Cancel => out.u8(1),
        Request::Window(window) => out.u8(2).varint(u64::from(*window)),
        Request::Pause { by, why } => {
            out.u8(3).u8(if *by == PausedBy::Person { 0 } else { 1 }).text(why)
        }
    };
    out.finish()
}

pub(in crate::catalog) fn decode(bytes: &[u8]) -> Result<Request> {
    let mut from = Reader::new(NAME, VERSION, bytes)?;
    let request = match from.u8()? {
        0 => Request::Resume,
        1 => Request::Cancel,
        2 => Request::Window(from.u32()?),
        3 => {
            let by = match from.u8()? {
                0 => PausedBy::Person,
                1 => PausedBy::Obstacle,
                _ => return Err(from.broken("comes from nobody known")),
            };
            Request::Pause { by, why: from.text()? }
        }
        _ => return Err(from.broken("asks for something unknown")),
    };
    from.end()?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::codec::check_codec;

    #[test]
    fn every_request_reads_back_and_every_prefix_is_refused() {
        let why = "maintenance".to_owned();
        for request in [
            Request::Resume,
            Request::Cancel,
            Request::Window(300),
            Request::Pause { by: PausedBy::Person, why },
        ] {
            check_codec(&request, encode, decode);
        }
    }
}
