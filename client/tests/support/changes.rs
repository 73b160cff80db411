// What the node tells of changes. A token is `log@offset`, and while it tells what was there, also up to which offset deletes are
// left out: `log@offset<offset`.

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::record::ttl;
use bitacora_protocol::rpc::{
    Answer, Change, ChangePage, ChangesRequest, DeleteReason, DeletedKey, ErrorCode, Failure, Message,
    RequestError,
};
use bitacora_protocol::Position;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::Store;

/// A call that reads changes.
pub struct Asked {
    since: String,
    prefix: String,
    key: String,
    limit: usize,
    wait: Duration,
    values: bool,
    initial: bool,
}

impl Asked {
    pub fn of(changes: &ChangesRequest<'_>) -> Self {
        let ChangesRequest { since, prefix, key, limit, wait, values, initial } = *changes;
        let limit = usize::try_from(limit).expect("a limit");
        Self { since: since.into(), prefix: prefix.into(), key: key.into(), limit, wait, values, initial }
    }

    /// Waits until there is something to tell.
    pub async fn answer(mut self, store: &Arc<Mutex<Store>>) -> Vec<u8> {
        let until = Instant::now() + self.wait;
        loop {
            let (answer, token) = self.page(&store.lock());
            // A token means that there was nothing, from now on.
            match token {
                Some(token) if Instant::now() < until => self.since = token,
                _ => return answer,
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// The answer; with a token if it tells nothing.
    pub fn page(&self, store: &Store) -> (Vec<u8>, Option<String>) {
        let mut out = Vec::new();
        let end = store.writes.len();
        let (log, since, initial_until) = match parse(&self.since) {
            _ if self.since.is_empty() && self.initial => (store.log, 0, end),
            _ if self.since.is_empty() => (store.log, end, 0),
            Some(token) => token,
            None => {
                let message = "this is no token of a watch".to_owned();
                let error = RequestError { code: ErrorCode::BadRequest, message };
                Failure::Declared(error).encode(Some(Message::ReadChanges), &mut out);
                return (out, None);
            }
        };
        if log != store.log {
            let next = format!("{}@0<{end}", store.log);
            let events = vec![Change::Gap("the token is of another log")];
            Answer::Changes(ChangePage { events, next: &next, current: false, positions: Vec::new() })
                .encode(&mut out);
            return (out, None);
        }
        let mut events = Vec::new();
        let mut at = since;
        while at < end && events.len() < self.limit {
            events.extend(self.event(store, at, initial_until));
            at += 1;
        }
        let is_initial = at < initial_until;
        let next = if is_initial { format!("{log}@{at}<{initial_until}") } else { format!("{log}@{at}") };
        let positions =
            if is_initial { vec![] } else { vec![Position { partition: 0, offset: at as i64 - 1 }] };
        let tells_nothing = events.is_empty();
        Answer::Changes(ChangePage { events, next: &next, current: at == end, positions }).encode(&mut out);
        (out, tells_nothing.then_some(next))
    }

    fn event<'a>(&self, store: &'a Store, offset: usize, initial_until: usize) -> Option<Change<'a>> {
        let (key, _) = &store.writes[offset];
        let is_asked_for = key.starts_with(&self.prefix) && (self.key.is_empty() || *key == self.key);
        let (record, position) = store.records.get(key).filter(|_| is_asked_for)?;
        if position.offset != offset as i64 {
            return None;
        }
        if record.ttl == ttl::DELETED {
            let reason = DeleteReason::Deleted;
            let deleted = DeletedKey { key, position: *position, timestamp: record.timestamp, reason };
            return (offset >= initial_until).then_some(Change::Deleted(deleted));
        }
        let mut record = record.as_borrowed();
        if !self.values {
            record.value = "";
        }
        Some(Change::Set(record, *position))
    }
}

fn parse(token: &str) -> Option<(u32, usize, usize)> {
    let (log, rest) = token.split_once('@')?;
    let (offset, initial_until) = rest.split_once('<').unwrap_or((rest, "0"));
    Some((log.parse().ok()?, offset.parse().ok()?, initial_until.parse().ok()?))
}
