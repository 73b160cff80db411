//! Tokens: how far somebody who follows changes has been told, as a text that every node of the cluster reads.
//!
//! The bytes, base64 (for URLs, without padding) of: a version; the log's tag; the point up to which everything has been told; perhaps a
//! scan that was under way; and a checksum. Numbers are of variable length, 7 bits a byte, the lowest first.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use bitacora_protocol::NextOffset;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::WallTime;
use crate::log::LogTag;
use crate::replication::feed::Point;
use crate::service::writes::MAX_KEY_BYTES;

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// A longer text is none.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// Kafka's clusters have fewer partitions of one topic.
const MAX_PARTITIONS: u64 = 10_000;

/// How far somebody has been told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub log: LogTag,
    /// Everything up to here, of the keys that a scan has passed.
    pub told: Point,
    pub scan: Option<ScanToken>,
}

/// A scan of the store that is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanToken {
    /// The last key that it has passed; `None`: none yet.
    pub after: Option<Box<str>>,
    /// What had been told of the keys behind that one; `None`: nothing, so that only those that are live are told.
    pub base: Option<Point>,
    /// Up to where something has been told that is not in `told`. Empty unless that is so.
    pub seen: Vec<NextOffset>,
    /// By which time keys have been told: what had expired by then is never told as set again, whatever another node's clock says.
    pub shown_until: WallTime,
    /// Of which keys it is: [`crate::store::KeyRange::digest`]. It says nothing of others.
    pub of: u32,
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no token of a watch; give one as it came, or none to begin anew")]
pub struct NoToken;

impl Token {
    /// As a text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(VERSION);
        bytes.extend(self.log.0.to_be_bytes());
        put_point(&mut bytes, &self.told);
        match &self.scan {
            None => bytes.push(0),
            Some(ScanToken { after, base, seen, shown_until, of }) => {
                bytes.push(1 | u8::from(after.is_some()) << 1 | u8::from(base.is_some()) << 2);
                if let Some(after) = after {
                    put_number(&mut bytes, after.len() as u64);
                    bytes.extend(after.as_bytes());
                }
                if let Some(base) = base {
                    put_point(&mut bytes, base);
                }
                put_offsets(&mut bytes, seen);
                put_time(&mut bytes, *shown_until);
                bytes.extend(of.to_be_bytes());
            }
        }
        bytes.extend(checksum(&bytes));
        BASE64.encode(bytes)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// When it is no token, or not as it was made.
    pub fn decode(text: &str) -> Result<Self, NoToken> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(NoToken);
        }
        let bytes = BASE64.decode(text).map_err(|_| NoToken)?;
        let (bytes, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(NoToken)?;
        if checksum(bytes) != *sum {
            return Err(NoToken);
        }
        let mut input = Input(bytes);
        input.parse().filter(|_| input.0.is_empty()).ok_or(NoToken)
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let [a, b, c, d, ..] = xxh3_64(bytes).to_be_bytes();
    [a, b, c, d]
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_offsets(out: &mut Vec<u8>, next: &[NextOffset]) {
    put_number(out, next.len() as u64);
    for next in next {
        put_number(out, next.0.max(0).cast_unsigned());
    }
}

fn put_time(out: &mut Vec<u8>, time: WallTime) {
    put_number(out, time.ms().max(0).cast_unsigned());
}

fn put_point(out: &mut Vec<u8>, point: &Point) {
    put_time(out, point.expired_until);
    put_offsets(out, &point.next);
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// Of at most 63 bits.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn offsets(&mut self) -> Option<Vec<NextOffset>> {
        let count = self.number().filter(|count| *count <= MAX_PARTITIONS)?;
        (0..count).map(|_| Some(NextOffset(self.number()?.cast_signed()))).collect()
    }

    fn time(&mut self) -> Option<WallTime> {
        Some(WallTime::from_ms(self.number()?.cast_signed()))
    }

    fn point(&mut self) -> Option<Point> {
        Some(Point { expired_until: self.time()?, next: self.offsets()? })
    }

    fn parse(&mut self) -> Option<Token> {
        if self.byte()? != VERSION {
            return None;
        }
        let log = LogTag(u64::from_be_bytes(*self.take(8)?.first_chunk()?));
        let told = self.point()?;
        let flags = self.byte().filter(|flags| *flags == 0 || flags & !0b110 == 1)?;
        if flags == 0 {
            return Some(Token { log, told, scan: None });
        }
        let after = if flags & 0b10 == 0 {
            None
        } else {
            // A foreign writer's key may be longer than those that nodes take.
            let length = self.number().filter(|length| *length <= MAX_KEY_BYTES as u64 * 64)?;
            let key = self.take(usize::try_from(length).ok()?)?;
            Some(Box::from(std::str::from_utf8(key).ok()?))
        };
        let base = if flags & 0b100 == 0 { None } else { Some(self.point()?) };
        let (seen, shown_until) = (self.offsets()?, self.time()?);
        let of = u32::from_be_bytes(*self.take(4)?.first_chunk()?);
        Some(Token { log, told, scan: Some(ScanToken { after, base, seen, shown_until, of }) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    prop_compose! {
        fn points()(offsets in vec(0..i64::MAX, 0..5), at in 0..i64::MAX) -> Point {
            Point { next: offsets.into_iter().map(NextOffset).collect(), expired_until: WallTime::from_ms(at) }
        }
    }

    prop_compose! {
        fn scans()(after in option::of(".{0,20}"), base in option::of(points()), seen in points(), of: u32) -> ScanToken {
            let shown_until = seen.expired_until;
            ScanToken { after: after.map(Box::from), base, seen: seen.next, shown_until, of }
        }
    }

    proptest! {
        #[test]
        fn what_was_made_is_read(log: u64, told in points(), scan in option::of(scans())) {
            let token = Token { log: LogTag(log), told, scan };
            prop_assert_eq!(Token::decode(&token.encode()), Ok(token));
        }

        #[test]
        fn a_changed_text_is_none(told in points(), scan in option::of(scans()), at: prop::sample::Index, with in "[A-Za-z0-9_=-]") {
            let token = Token { log: LogTag(7), told, scan }.encode();
            let at = at.index(token.len());
            let mut changed = token.clone();
            changed.replace_range(at..=at, &with);
            prop_assume!(changed != token);
            prop_assert_eq!(Token::decode(&changed), Err(NoToken));
            prop_assert_eq!(Token::decode(&token[..at]), Err(NoToken));
        }

        #[test]
        fn any_text_is_a_token_or_none(text in "[A-Za-z0-9_-]{0,80}|\\PC{0,40}") {
            let _ = Token::decode(&text);
        }
    }

    #[test]
    fn a_token_is_short() {
        let next = vec![NextOffset(1_000_000); 12];
        let told = Point { next, expired_until: WallTime::from_ms(1_800_000_000_000) };
        let token = Token { log: LogTag(u64::MAX), told, scan: None }.encode();
        assert!(token.len() < 100, "{} bytes: {token}", token.len());
    }
}
