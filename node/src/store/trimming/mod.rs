//! What of trimming the store does: it decides whether a conditional record takes effect ([`key_state`]), and tells the trimmer what
//! may leave the log ([`candidates`]) and what must be appended again ([`repairs`]). `docs/trimming.md` says why that loses nothing.

mod candidates;
mod key_state;
mod repairs;

pub use self::candidates::{TrimQuery, Trimmable};
pub use self::key_state::{Change, Judgement, PendingRepair, Writer};
pub(super) use self::key_state::{KeyState, Outcome, parse_older_entries, parse_pending_repairs};
pub use self::repairs::NeededRepair;
