//! A node's store beside LMDB itself, in one process and on one thread: what the store adds to a get and to a put.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bitacora_node::clock::LogTime;
use bitacora_node::log::{Batch, LogRecord, LogTag};
use bitacora_node::replication::apply;
use bitacora_node::store::Store;
use bitacora_protocol::{HighWatermark, NextOffset, Position};
use e2e::measure::row::{Better, Row};
use e2e::measure::{key, results, value};
use e2e::runner::Ctx;
use e2e::topic::KeyValue;
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions};

use crate::size::{VALUE_BYTES, size};

/// Records of a transaction.
const BATCH: u64 = 10_000;
/// Reads in a round.
const READS: u64 = 300_000;
const LOG: LogTag = LogTag(1);

pub async fn run(ctx: Ctx) -> Result<()> {
    tokio::task::spawn_blocking(move || measure(&ctx.dir)).await?
}

#[derive(Default)]
struct Rounds {
    store_puts: Vec<f64>,
    lmdb_puts: Vec<f64>,
    store_gets: Vec<f64>,
    cache_gets: Vec<f64>,
    lmdb_gets: Vec<f64>,
}

fn measure(dir: &Path) -> Result<()> {
    let keys = size().cached.next_multiple_of(BATCH);
    let mut rounds = Rounds::default();
    for round in 0..size().long_rounds {
        let bare = Bare::open(&dir.join(format!("bare-{round}")))?;
        let folder = dir.join(format!("store-{round}"));
        std::fs::create_dir_all(&folder)?;
        // A cache that holds nothing.
        let store = Store::open(&folder, 0)?;
        rounds.store_puts.push(puts(keys, |batch| {
            let (applied, poison) = apply(&store, batch, LOG, &[HighWatermark(0)])?;
            ensure!(applied.changed == BATCH as usize && poison == 0, "{applied:?}, {poison} unreadable");
            Ok(())
        })?);
        rounds.lmdb_puts.push(puts(keys, |batch| bare.put(batch))?);
        rounds.store_gets.push(gets(keys, |key| Ok(store.get(key)?.is_some()))?);
        rounds.lmdb_gets.push(gets(keys, |key| bare.get(key))?);
        drop(store);
        let store = Store::open(&folder, 4 << 30)?;
        for number in 0..keys {
            ensure!(store.get(key(number).as_bytes())?.is_some(), "a key is missing");
        }
        rounds.cache_gets.push(gets(keys, |key| Ok(store.get(key)?.is_some()))?);
    }
    let row = |work, figure, ours: &[f64], theirs: &[f64]| {
        Row::beside(("lmdb", work, "LMDB itself (heed)"), figure, Better::Higher, ours, Some(theirs))
    };
    results::add([
        row("get from the store, nothing cached", "gets/s", &rounds.store_gets, &rounds.lmdb_gets),
        row("get from the store, all cached", "gets/s", &rounds.cache_gets, &rounds.lmdb_gets),
        row(
            "apply records of the log, 10,000 in a transaction",
            "records/s",
            &rounds.store_puts,
            &rounds.lmdb_puts,
        ),
    ]);
    Ok(())
}

/// Records a second that `put` takes, each key once, in no order; what makes the batches does not count. Whole batches of keys.
fn puts(keys: u64, mut put: impl FnMut(&Batch) -> Result<()>) -> Result<f64> {
    let (mut batch, mut seconds, value) = (Batch::default(), 0.0, value(VALUE_BYTES));
    for start in (0..keys).step_by(BATCH as usize) {
        batch.clear();
        for offset in start..start + BATCH {
            // 7919 is a prime: every number once, far from the one before.
            let key = key(offset * 7919 % keys);
            let record = KeyValue::new(&key, &value).to_avro();
            batch.push(LogRecord {
                position: Position { partition: 0, offset: offset as i64 },
                timestamp: LogTime::from_ms(1_700_000_000_000),
                key: Some(key.as_bytes()),
                value: Some(&record),
                condition: None,
                level: None,
                epoch: None,
            });
        }
        batch.reached(0, NextOffset((start + BATCH) as i64));
        let began = Instant::now();
        put(&batch)?;
        seconds += began.elapsed().as_secs_f64();
    }
    Ok(keys as f64 / seconds)
}

/// Reads a second of keys by chance.
fn gets(keys: u64, get: impl Fn(&[u8]) -> Result<bool>) -> Result<f64> {
    let names: Vec<_> = (0..1 << 16).map(|_| key(fastrand::u64(..keys))).collect();
    let began = Instant::now();
    for name in names.iter().cycle().take(READS as usize) {
        ensure!(get(name.as_bytes())?, "a key is missing");
    }
    Ok(READS as f64 / began.elapsed().as_secs_f64())
}

/// LMDB without a store over it, with the flags that a store has while it is filled.
struct Bare {
    env: Env,
    records: Database<Bytes, Bytes>,
}

impl Bare {
    fn open(dir: &Path) -> Result<Bare> {
        std::fs::create_dir_all(dir)?;
        let mut options = EnvOpenOptions::new();
        options.map_size(1 << 36).max_dbs(1);
        #[expect(unsafe_code, reason = "LMDB's map must not be changed by others")]
        // SAFETY: the folder is this benchmark's own, and the flag is about syncing only.
        let env = unsafe { options.flags(EnvFlags::NO_SYNC).open(dir) }.context("opening LMDB")?;
        let mut txn = env.write_txn()?;
        let records = env.create_database(&mut txn, Some("records"))?;
        txn.commit()?;
        Ok(Bare { env, records })
    }

    /// A batch in one transaction, in the order of its keys, as a store applies it.
    fn put(&self, batch: &Batch) -> Result<()> {
        let mut records: Vec<_> =
            batch.records().filter_map(|record| Some((record.key?, record.value?))).collect();
        records.sort_unstable();
        let mut txn = self.env.write_txn()?;
        for (key, value) in records {
            self.records.put(&mut txn, key, value)?;
        }
        Ok(txn.commit()?)
    }

    /// In a transaction of its own; what is found is copied, as whoever answers needs it after the transaction.
    fn get(&self, key: &[u8]) -> Result<bool> {
        let txn = self.env.read_txn()?;
        let copied = self.records.get(&txn, key)?.map(<[u8]>::to_vec);
        Ok(std::hint::black_box(copied).is_some())
    }
}
