//! `cargo bench -p bitacora-node`: the inner parts of a node alone, by Criterion: the record's encoding, the RPC's frames, a get from the
//! store, a batch that is applied. Criterion compares each with the run before.

use std::cell::RefCell;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use bitacora_node::clock::LogTime;
use bitacora_node::log::{Batch, LogRecord, LogTag};
use bitacora_node::replication::apply;
use bitacora_node::store::Store;
use bitacora_protocol::record::{KeyValue, source, ttl};
use bitacora_protocol::rpc::{FrameLimits, FrameReader, Request, put_frame};
use bitacora_protocol::{HighWatermark, NextOffset, Position};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const VALUE_BYTES: usize = 100;
/// Records in the store, and in a batch.
const RECORDS: i64 = 100_000;
const BATCH: i64 = 1_000;
const LOG: LogTag = LogTag(1);

fn key(number: i64) -> String {
    format!("key:{number:012}")
}

/// A record as the log has it.
fn encoded(key: &str, value: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let uuid = "0b5f9d0e-6d3c-4a51-9a52-0f4f9b3c8d1e";
    KeyValue { key, value, timestamp: 1_700_000_000_000, source: source::PRODUCER, ttl: ttl::FOR_EVER, uuid }
        .encode(&mut bytes);
    bytes
}

fn record(c: &mut Criterion) {
    let (key, value) = (key(7), "v".repeat(VALUE_BYTES));
    let bytes = encoded(&key, &value);
    let decoded = KeyValue::decode(&bytes).expect("it was encoded");
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::with_capacity(bytes.len());
    group.bench_function("encode", |b| {
        b.iter(|| {
            out.clear();
            black_box(&decoded).encode(&mut out);
            black_box(&out);
        });
    });
    group.bench_function("decode", |b| b.iter(|| KeyValue::decode(black_box(&bytes))));
    group.finish();
}

fn frames(c: &mut Criterion) {
    const CALLS: i64 = 128;
    let mut input = Vec::new();
    for serial in 0..CALLS {
        let key = key(serial);
        put_frame(&mut input, serial as i32, |out| Request::GetValue { key: &key }.encode(out));
    }
    let mut group = c.benchmark_group("frames");
    group.throughput(Throughput::Elements(CALLS as u64));
    let mut scratch = Vec::new();
    group.bench_function("find and decode calls of getValue", |b| {
        b.iter(|| {
            let mut reader = FrameReader::new(FrameLimits { bytes: 1 << 20, buffers: 16 });
            let (mut used, mut calls) = (0, 0);
            while let Ok(Some(frame)) = reader.next(&input[used..], &mut scratch) {
                used += frame.length;
                calls += usize::from(Request::decode(black_box(frame.message), None).is_ok());
            }
            assert_eq!(calls, CALLS as usize, "a call can't be decoded");
        });
    });
    group.finish();
}

/// Records of keys from `first` on, at the offsets from `offset` on.
fn fill(batch: &mut Batch, first: i64, offset: i64, count: i64) {
    let value = "v".repeat(VALUE_BYTES);
    batch.clear();
    for number in 0..count {
        let key = key((first + number) % RECORDS);
        let value = encoded(&key, &value);
        batch.push(LogRecord {
            position: Position { partition: 0, offset: offset + number },
            timestamp: LogTime::from_ms(1_700_000_000_000),
            key: Some(key.as_bytes()),
            value: Some(&value),
            condition: None,
            level: None,
            epoch: None,
        });
    }
    batch.reached(0, NextOffset(offset + count));
}

fn filled(dir: &Path, cache_bytes: u64) -> Store {
    let store = Store::open(dir, cache_bytes).expect("an empty folder");
    let mut batch = Batch::default();
    fill(&mut batch, 0, 0, RECORDS);
    apply(&store, &batch, LOG, &[HighWatermark(0)]).expect("it is applied");
    store
}

fn store_get(c: &mut Criterion) {
    let names: Vec<_> = (0..1 << 14).map(|number: i64| key(number * 7919 % RECORDS)).collect();
    let mut group = c.benchmark_group("store");
    group.throughput(Throughput::Elements(1));
    for (name, cache_bytes) in [("get, cached", 1 << 30), ("get, from LMDB", 0)] {
        let dir = tempfile::tempdir().expect("a folder");
        let store = filled(dir.path(), cache_bytes);
        let mut names = names.iter().cycle();
        group.bench_function(name, |b| {
            b.iter(|| {
                let name = names.next().expect("it never ends").as_bytes();
                let found = store.get(black_box(name)).expect("readable");
                assert!(found.is_some(), "a key is missing");
                found
            });
        });
    }
    group.finish();
}

fn apply_batch(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = filled(dir.path(), 1 << 30);
    let next = RefCell::new(RECORDS);
    let mut group = c.benchmark_group("store");
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(20);
    group.measurement_time(Duration::from_secs(8));
    group.bench_function("apply 1,000 records of keys that are there", |b| {
        b.iter_batched(
            || {
                let offset = next.replace_with(|next| *next + BATCH);
                let mut batch = Batch::default();
                fill(&mut batch, offset * 7919 % RECORDS, offset, BATCH);
                batch
            },
            |batch| apply(&store, &batch, LOG, &[HighWatermark(0)]).expect("it is applied"),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(parts, record, frames, store_get, apply_batch);
criterion_main!(parts);
