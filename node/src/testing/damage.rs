//! What may befall bytes on their way, for property tests of what reads them.

use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug)]
pub enum Damage {
    Flip(Index, u8),
    Set(Index, Vec<u8>),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// What lies at one place comes once more, in the place of what lies at another.
    Splice(Index, Index, usize),
}

/// One to four damages.
pub fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let bytes = || {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 1..10),
            any::<i64>().prop_map(|n| n.to_be_bytes().into())
        ]
    };
    let one = prop_oneof![
        4 => (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        2 => (any::<Index>(), bytes()).prop_map(|(at, bytes)| Damage::Set(at, bytes)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), bytes()).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (any::<Index>(), 1..20_usize).prop_map(|(at, length)| Damage::Remove(at, length)),
        1 => (any::<Index>(), any::<Index>(), 1..200_usize).prop_map(|(from, to, length)| Damage::Splice(from, to, length)),
    ];
    prop::collection::vec(one, 1..5)
}

/// The bytes after that; they may be the same.
pub fn damaged(bytes: &[u8], damages: &[Damage]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for damage in damages {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match damage {
            Damage::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Damage::Set(at, new) => {
                let at = at.index(length);
                let count = new.len().min(length - at);
                bytes[at..at + count].copy_from_slice(&new[..count]);
            }
            Damage::Cut(at) => bytes.truncate(at.index(length)),
            Damage::Insert(at, new) => {
                drop(bytes.splice(at.index(length)..at.index(length), new.iter().copied()));
            }
            Damage::Remove(at, count) => {
                drop(bytes.drain(at.index(length)..(at.index(length) + count).min(length)));
            }
            Damage::Splice(from, to, count) => {
                let (from, to) = (from.index(length), to.index(length));
                let count = (*count).min(length - from.max(to));
                bytes.copy_within(from..from + count, to);
            }
        }
    }
    bytes
}
