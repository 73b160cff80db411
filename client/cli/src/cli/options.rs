//! What may be asked of reads and writes: how consistent, on which condition, and who must show it.

use std::time::Duration;

use bitacora_client::{ReadLevel, Session};
use bitacora_protocol::units::positive_duration;
use bitacora_protocol::{Consistency, Position, Visible, WriteCondition};
use clap::Args;

const CONSISTENCY: &str = "Consistency";

/// What a read may ask for.
#[derive(Debug, Clone, Default, Args)]
pub struct ReadFlags {
    /// eventual: what the node holds; session: at least --position; latest: up to the log's end as its leader says; strong: linearizable [default: eventual, or session if --position is given]
    #[arg(long, value_name = "LEVEL", value_parser = parse::<Consistency>, help_heading = CONSISTENCY)]
    pub consistency: Option<Consistency>,
    /// What must be seen, partition:offset,… as writes and reads told it; alone it means --consistency session
    #[arg(long, value_name = "POSITIONS", value_parser = session, help_heading = CONSISTENCY)]
    pub position: Option<Session>,
    /// Fail unless the node has everything that was written until so long ago
    #[arg(long, value_name = "TIME", value_parser = positive_duration, help_heading = CONSISTENCY)]
    pub max_staleness: Option<Duration>,
}

/// What a write may ask for.
#[derive(Debug, Clone, Default, Args)]
pub struct WriteFlags {
    /// Write only if the key's version is still this one, partition:offset as 'get -o json' and writes tell it; '*': if there is such a key
    #[arg(long, value_name = "VERSION", value_parser = version, help_heading = CONSISTENCY)]
    pub if_match: Option<WriteCondition>,
    /// A UUID for this write: sent again with the same one, it is not done twice
    #[arg(long, value_name = "UUID", value_parser = uuid, help_heading = CONSISTENCY)]
    pub idempotency_key: Option<String>,
    /// Who must show the write before this ends: acknowledged (nobody), here (the node that is asked) or all (every member) [default: acknowledged]
    #[arg(long, value_name = "WHO", value_parser = parse::<Visible>, help_heading = CONSISTENCY)]
    pub visible: Option<Visible>,
}

impl ReadFlags {
    /// Whether they contradict each other.
    pub fn check(&self) -> Result<(), &'static str> {
        match (self.consistency, &self.position) {
            (Some(Consistency::Session), None) => {
                Err("--consistency session needs --position, which says what must be seen")
            }
            (Some(Consistency::Session) | None, _) | (Some(_), None) => Ok(()),
            (Some(_), Some(_)) => {
                Err("--position is what --consistency session must see; leave one of them out")
            }
        }
    }

    /// For the client library.
    pub fn level(&self) -> ReadLevel {
        let level = match (self.consistency, &self.position) {
            (Some(Consistency::Latest), _) => ReadLevel::latest(),
            (Some(Consistency::Strong), _) => ReadLevel::strong(),
            (_, Some(session)) => ReadLevel::session(session),
            _ => ReadLevel::eventual(),
        };
        match self.max_staleness {
            Some(age) => level.max_staleness(age),
            None => level,
        }
    }
}

pub(super) fn parse<T: std::str::FromStr<Err = String>>(text: &str) -> Result<T, String> {
    text.parse()
}

fn session(text: &str) -> Result<Session, String> {
    if text.is_empty() {
        return Err("it is empty; it is written partition:offset, for example 2:1047".to_owned());
    }
    text.parse().map_err(|error: bitacora_protocol::SessionPositionError| error.to_string())
}

/// A version, perhaps in the quotes that HTTP's header `ETag` has.
pub fn version(text: &str) -> Result<WriteCondition, String> {
    if text == "*" {
        return Ok(WriteCondition::Present);
    }
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let version: Result<Position, _> = bare.parse();
    version.map(WriteCondition::Version).map_err(|_| {
        format!("'{text}' is no version; it is written partition:offset, for example 2:1047, or '*'")
    })
}

/// The condition that can be asked of many keys.
pub(super) fn present(text: &str) -> Result<WriteCondition, String> {
    match version(text)? {
        WriteCondition::Version(_) => {
            Err("a version belongs to one key; give it in the line, as ifMatch, or '*' here".to_owned())
        }
        any => Ok(any),
    }
}

fn uuid(text: &str) -> Result<String, String> {
    let is_uuid = text.len() == 36
        && text.char_indices().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        });
    if is_uuid { Ok(text.to_owned()) } else { Err("it is no UUID, such as uuidgen prints".to_owned()) }
}
