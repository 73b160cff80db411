//! Reads that are more than eventual, of keys in doubt.

use std::sync::Arc;
use std::time::Duration;

use bitacora_protocol::record::{KeyValue, source};
use bitacora_protocol::{Consistency, HighWatermark, NextOffset, Position};

use super::peers::{self, Peers};
use super::reads::PeerReads;
use super::*;
use crate::clock::LogTime;
use crate::cluster::fixed::FixedMembership;
use crate::data_dir::DataDir;
use crate::http_client::MemberClients;
use crate::log::embedded::EmbeddedLog;
use crate::log::{Expected, Log};
use crate::metrics::Metrics;
use crate::replication::progress::Progress;
use crate::replication::state::Event;
use crate::store::{Change, Entry, Judgement, Store};

/// A node that has applied everything, as far as it reads: what is written here into its store.
struct Reader {
    store: Arc<Store>,
    reads: Reads,
    scans: Scans,
    consistent: ConsistentReads,
    _dir: tempfile::TempDir,
}

fn reader() -> Reader {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Arc::new(Store::open(&dir.path().join("store"), 1 << 20).expect("a store"));
    let folder = DataDir::open(&dir.path().join("log")).expect("a folder");
    let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder, "t", 1).expect("a log"));
    let (progress, metrics) = (Arc::<Progress>::default(), Arc::new(Metrics::new().expect("names differ")));
    progress.begin_reading(&[NextOffset(9)], Event::StoreEmptied).expect("possible");
    progress.note_caught_up().expect("restored");
    progress.note_event(Event::LogOpened).expect("possible");
    progress.learn_high_watermarks(&[HighWatermark(9)], progress.question_for_high_watermarks());
    let memory = Memory::unlimited();
    let members = Arc::new(FixedMembership::new(vec!["me:1".to_owned()], "me:1"));
    let limits = peers::Limits { timeout: Duration::from_secs(1), max_value_bytes: 1 };
    let (clients, known) = (MemberClients::default(), Arc::clone(&progress));
    let peers = Peers::new(&clients, members, known, "me:1".into(), limits, memory.clone(), metrics.clone());
    let reads =
        Reads::new(Arc::clone(&store), Arc::clone(&progress), peers.expect("a client"), PeerReads::Never);
    let scans = Scans::new(Arc::clone(&store), Arc::clone(&progress));
    let consistent = ConsistentReads::new(log, progress, memory, metrics);
    Reader { store, reads, scans, consistent, _dir: dir }
}

impl Reader {
    fn apply(&self, key: &str, offset: i64, doubtful: bool) {
        let record = KeyValue { key, value: "v", timestamp: 1, source: source::PRODUCER, ttl: 0, uuid: "u" };
        let entry = Entry::new(Position { partition: 0, offset }, LogTime::from_ms(1), &record);
        let change = if doubtful {
            Change::Attempt { entry, expected: Expected::Nothing, judgement: Judgement::Impossible }
        } else {
            entry.into()
        };
        self.store.apply(&mut vec![(key.as_bytes(), change)], &[]).expect("applied");
    }

    async fn get(&self, key: &str) -> Result<Answer, OperationError> {
        let (answer, _) = read_consistently(&self.reads, &self.consistent, key, &demand()).await?;
        Ok(answer)
    }

    async fn scan(&self, prefix: &str) -> Result<Page, OperationError> {
        let scan = ScanRequest { prefix, limit: 9, ..ScanRequest::default() };
        scan_consistently(&self.scans, &self.consistent, &scan, &demand(), &Memory::unlimited()).await
    }
}

/// What this node has applied is enough.
fn demand() -> Demand {
    let (consistency, position) = (Consistency::Session, "0:8");
    Demand::of(&ReadOptions { consistency, position, ..ReadOptions::default() }).expect("it makes sense")
}

fn refused<T>(outcome: Result<T, OperationError>) -> String {
    let error = outcome.map(|_| ()).expect_err("refused");
    assert_eq!(error.kind().http_status(), 503, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_read_of_a_key_in_doubt_is_refused() {
    let reader = reader();
    reader.apply("a", 1, false);
    reader.apply("k", 2, true);
    assert_eq!(reader.get("a").await.expect("certain").position.offset, 1);
    let why = refused(reader.get("k").await);
    assert!(why.contains("in doubt") && why.ends_with("this node has applied 0:8"), "{why}");
    reader.apply("k", 3, false);
    assert_eq!(reader.get("k").await.expect("certain by now").position.offset, 3);
}

#[tokio::test]
async fn a_page_with_a_key_in_doubt_is_refused() {
    let reader = reader();
    reader.apply("a/1", 1, false);
    reader.apply("k/1", 2, true);
    let why = refused(reader.scan("").await);
    assert!(why.contains("'k/1'") && why.contains("in doubt"), "{why}");
    refused(reader.scan("k/").await);
    assert_eq!(reader.scan("a/").await.expect("certain").entries.len(), 1);
    let eventual = ScanRequest { limit: 9, ..ScanRequest::default() };
    let page = reader.scans.page(&eventual, &Memory::unlimited()).await.expect("eventual");
    assert_eq!(page.entries.len(), 2, "it shows what is there");
    reader.apply("k/1", 3, false);
    assert_eq!(reader.scan("").await.expect("certain by now").entries.len(), 2);
}

#[tokio::test]
async fn a_large_page_is_answered_on_another_thread() {
    let reader = reader();
    let whole = ScanRequest { limit: 10_000, ..ScanRequest::default() };
    let thread_of_answer = async || {
        let page = reader.scans.page(&whole, &Memory::unlimited()).await.expect("a page");
        page.answer(|page| (page.entries.len(), std::thread::current().id())).await.expect("answered")
    };
    reader.apply("a", 0, false);
    assert_eq!(thread_of_answer().await, (1, std::thread::current().id()), "a small one is at once");
    for offset in 1..1_000 {
        reader.apply(&format!("a key of some length {offset:050}"), offset, false);
    }
    let (records, thread) = thread_of_answer().await;
    assert_eq!(records, 1_000);
    assert_ne!(thread, std::thread::current().id());
}
