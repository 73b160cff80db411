//! The Avro RPC: handshakes, calls that overtake each other, whole records, and limits that cost a client its connection
//! but never the node its memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bitacora_protocol::Operation;
use bitacora_protocol::rpc::{
    Answer, BatchResult, ErrorCode, Failure, HandshakeMatch, Message, PROTOCOL_HASH, Request, RequestError,
    ScanRequest, protocol_hash,
};
use e2e::cluster::{Cluster, Options, START};
use e2e::rpc::{RpcConnection, good};
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};

pub fn tests() -> Vec<Test> {
    tests![
        Servers: handshakes_as_the_specification_has_them, calls_of_the_original_protocol, whole_records_and_declared_errors,
            a_foreign_declaration_is_resolved, a_slow_call_blocks_nobody, a_batch_and_a_scan, frames_are_limited,
            idle_and_half_sent_connections_are_closed, a_client_that_never_reads_costs_no_memory,
            connections_are_limited, a_stopping_node_ends_what_it_began_and_refuses_the_rest
    ]
}

const ORIGINAL: &str = r#"{"protocol":"RPCHandlerAvro","namespace":"com.grayscaleconsulting.bitacora.rpc.avro","types":[],"messages":{"getValue":{"request":[{"name":"key","type":{"type":"string","avro.java.string":"String"}}],"response":["null","string"]},"setValue":{"request":[{"name":"key","type":"string"},{"name":"value","type":"string"}],"response":"null"},"delete":{"request":[{"name":"key","type":"string"}],"response":"null"}}}"#;

async fn one_node(ctx: &Ctx, options: Options) -> Result<Cluster> {
    let cluster = ctx.cluster_with(1, options).await?;
    cluster.nodes[0].api().set("canary", "alive").await?.expect(200);
    cluster.nodes[0].has("canary", Some("alive")).await;
    Ok(cluster)
}

async fn alive(cluster: &Cluster) -> Result<()> {
    let mut connection = RpcConnection::connect(cluster.nodes[0].avro_port).await?;
    assert_eq!(connection.value("canary").await?, Ok(Some("alive".to_string())));
    Ok(())
}

async fn handshakes_as_the_specification_has_them(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new()).await?;
    let port = cluster.nodes[0].avro_port;
    let hash = protocol_hash(ORIGINAL);
    // Unknown, and not sent along: it is asked for, and the call is not answered.
    let mut connection = RpcConnection::open(port).await?;
    let shaken = connection.shake(hash, None, hash).await?;
    assert!(
        shaken.matched == HandshakeMatch::None && shaken.server_protocol.is_some() && shaken.rest.is_empty()
    );
    // Sent along, with another idea of the node's: it learns the node's.
    let shaken = connection.shake(hash, Some(ORIGINAL), hash).await?;
    assert!(shaken.matched == HandshakeMatch::Client && shaken.server_protocol.is_some());
    // Once a connection: what follows are calls alone.
    assert_eq!(connection.value("canary").await?, Ok(Some("alive".to_string())));
    // Now the node knows the hash.
    let mut connection = RpcConnection::open(port).await?;
    let shaken = connection.shake(hash, None, *PROTOCOL_HASH).await?;
    assert!(shaken.matched == HandshakeMatch::Both && shaken.server_protocol.is_none());
    assert_eq!(connection.value("canary").await?, Ok(Some("alive".to_string())));
    // A protocol under another's hash is not remembered for it.
    let other = ORIGINAL.replace("getValue", "gutValue");
    let mut liar = RpcConnection::open(port).await?;
    liar.shake([7; 16], Some(&other), *PROTOCOL_HASH).await?;
    let mut next = RpcConnection::open(port).await?;
    assert_eq!(next.shake([7; 16], None, *PROTOCOL_HASH).await?.matched, HandshakeMatch::None);
    // What is no protocol, and what is no handshake, is not talked to.
    for (hash, text) in
        [([1; 16], "no protocol".to_string()), ([2; 16], format!("{{\"a\":\"{}\"}}", "a".repeat(70_000)))]
    {
        let mut broken = RpcConnection::open(port).await?;
        assert!(broken.shake(hash, Some(&text), *PROTOCOL_HASH).await.is_err());
    }
    let mut broken = RpcConnection::open(port).await?;
    broken.send_message(1, b"GET / HTTP/1.1").await?;
    broken.closed().await?;
    alive(&cluster).await
}

async fn calls_of_the_original_protocol(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let mut writer = RpcConnection::connect_with(cluster.nodes[0].avro_port, ORIGINAL).await?;
    let mut reader = RpcConnection::connect_with(cluster.nodes[1].avro_port, ORIGINAL).await?;
    let large = "ä".repeat(1 << 19);
    for (key, value) in
        [("plain", "value"), ("schlüssel 🗝 &=%+/", "größe\u{0}\n"), ("empty", ""), ("large", &large)]
    {
        let set = writer.call(Request::SetValue { key, value }, |answer| answer == Ok(Answer::Null)).await?;
        ensure!(set, "setValue of {key:?}");
        cluster.all_have(key, Some(value)).await;
        assert_eq!(reader.value(key).await?, Ok(Some(value.to_string())), "{key:?}");
        let deleted = writer.call(Request::Delete { key }, |answer| answer == Ok(Answer::Null)).await?;
        ensure!(deleted, "delete of {key:?}");
        cluster.all_have(key, None).await;
        assert_eq!(reader.value(key).await?, Ok(None), "{key:?}");
    }
    assert_eq!(reader.value("never set").await?, Ok(None));
    // Errors are sentences, and the connection goes on.
    let (long_key, long_value) = ("k".repeat(1025), "v".repeat((1 << 20) + 1));
    for (request, says) in [
        (Request::GetValue { key: " " }, "blank"),
        (Request::Delete { key: "" }, "blank"),
        (Request::GetValue { key: &long_key }, "1024"),
        (Request::SetValue { key: "k", value: &long_value }, "1048576"),
    ] {
        let failure = writer.fails(request).await?;
        ensure!(matches!(&failure, Failure::Text(text) if text.contains(says)), "{failure:?} without {says}");
    }
    let failure = writer.fails(Request::GetRecord { key: "k" }).await?;
    ensure!(failure.to_string().contains("getRecord"), "the client's protocol lacks it: {failure}");
    assert_eq!(writer.value("plain").await?, Ok(None));
    Ok(())
}

async fn whole_records_and_declared_errors(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new()).await?;
    let node = &cluster.nodes[0];
    let mut connection = RpcConnection::connect(node.avro_port).await?;
    let before = e2e::topic::now_ms();
    let set = Request::SetRecord { key: "k", value: "v", ttl: 3_600_000 };
    let (position, timestamp, ttl) = connection
        .call(set, |answer| match answer {
            Ok(Answer::Written(written)) => Ok((written.position, written.timestamp, written.ttl)),
            other => Err(anyhow::anyhow!("{other:?}")),
        })
        .await??;
    ensure!(ttl >= before + 3_600_000 && ttl <= e2e::topic::now_ms() + 3_600_000, "{ttl}");
    node.has("k", Some("v")).await;
    let read = connection
        .call(Request::GetRecord { key: "k" }, |answer| match answer {
            Ok(Answer::Read(read)) => {
                Ok((read.record.map(|record| record.to_owned()), read.position, read.timestamp))
            }
            other => Err(anyhow::anyhow!("{other:?}")),
        })
        .await??;
    let record = read.0.context("no record")?;
    assert_eq!(
        (record.value.as_str(), record.timestamp, record.source, record.ttl),
        ("v", timestamp, 1, ttl)
    );
    assert_eq!((read.1, read.2), (position, Some(timestamp)));
    // The same as over HTTP.
    let http = node.api().get("k").await?.expect(200);
    assert_eq!(http.header("bitacora-position"), Some(position.to_string().as_str()));
    // A delete marker is an answer with a position, a key that never was has none of its own.
    connection.call(Request::DeleteRecord { key: "k" }, |answer| answer.map(drop)).await??;
    node.has("k", None).await;
    for (key, marked) in [("k", true), ("never", false)] {
        let (found, timestamp) = connection
            .call(Request::GetRecord { key }, |answer| match answer {
                Ok(Answer::Read(read)) => Ok((read.record.is_some(), read.timestamp)),
                other => Err(anyhow::anyhow!("{other:?}")),
            })
            .await??;
        assert_eq!((found, timestamp.is_some()), (false, marked), "{key}");
    }
    let large = "v".repeat((1 << 20) + 1);
    for (request, code) in [
        (Request::GetRecord { key: "" }, ErrorCode::BadRequest),
        (Request::SetRecord { key: "k", value: "v", ttl: -1 }, ErrorCode::BadRequest),
        (Request::SetRecord { key: "k", value: "v", ttl: i64::MAX }, ErrorCode::BadRequest),
        (Request::SetRecord { key: "k", value: &large, ttl: 0 }, ErrorCode::TooLarge),
        (Request::Scan(ScanRequest { limit: 0, ..ScanRequest::default() }), ErrorCode::BadRequest),
        (
            Request::Scan(ScanRequest { limit: 1, cursor: "x", ..ScanRequest::default() }),
            ErrorCode::BadRequest,
        ),
    ] {
        let failure = connection.fails(request).await?;
        ensure!(
            matches!(&failure, Failure::Declared(error) if error.code == code),
            "{failure:?} is not {code:?}"
        );
    }
    alive(&cluster).await
}

async fn a_foreign_declaration_is_resolved(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new()).await?;
    let node = &cluster.nodes[0];
    // Another order, an optional value, a parameter more; a message that the node lacks; one that is one-way here.
    let protocol = r#"{"protocol":"P","messages":{
        "setValue":{"request":[{"name":"value","type":["null","string"]},{"name":"note","type":"double"},{"name":"key","type":"bytes"}],"response":"null"},
        "getValue":{"request":[{"name":"key","type":"string"}],"response":["null","string"]},
        "rename":{"request":[],"response":"null"},
        "delete":{"request":[{"name":"key","type":"string"}],"response":"null","one-way":true}}}"#;
    let mut connection = RpcConnection::connect_with(node.avro_port, protocol).await?;
    let call = [b"\x00\x10setValue\x02\x02v".as_slice(), &[0; 8], b"\x02k"].concat();
    connection.send_message(5, &call).await?;
    let (serial, answer) = connection.receive().await?.context("closed")?;
    assert_eq!((serial, good(Message::SetValue, &answer)?), (5, Answer::Null));
    node.has("k", Some("v")).await;
    for (call, says) in [(b"\x00\x0crename".as_slice(), "rename"), (b"\x00\x0cdelete\x02k", "one-way")] {
        connection.send_message(6, call).await?;
        let (_, answer) = connection.receive().await?.context("closed")?;
        let failure = Answer::decode(Message::Delete, &answer)?.expect_err("it can't be called");
        ensure!(failure.to_string().contains(says), "{failure}");
    }
    // Bytes that are no call cost an error, not the connection.
    connection.send_message(7, b"\x00\x10getValue\x7f").await?;
    let (serial, answer) = connection.receive().await?.context("closed")?;
    ensure!(serial == 7 && Answer::decode(Message::GetValue, &answer)?.is_err());
    assert_eq!(connection.value("k").await?, Ok(Some("v".to_string())));
    Ok(())
}

async fn a_slow_call_blocks_nobody(ctx: Ctx) -> Result<()> {
    let broker = ctx.own_broker().await?;
    let cluster = one_node(&ctx, Options::new().brokers(broker.address())).await?;
    let mut connection = RpcConnection::connect(cluster.nodes[0].avro_port).await?;
    // A set that can't be acknowledged, with reads behind it in the same write.
    broker.pause().await?;
    let mut requests = vec![Request::SetRecord { key: "slow", value: "v", ttl: 0 }];
    requests.extend(vec![Request::GetValue { key: "canary" }; 1000]);
    connection.send_all(&requests).await?;
    for expected in 1..=1000 {
        let (serial, answer) = connection.receive().await?.context("closed")?;
        assert_eq!((serial, good(Message::GetValue, &answer)?), (expected, Answer::Value(Some("alive"))));
    }
    broker.resume().await?;
    let (serial, answer) = connection.receive().await?.context("closed")?;
    ensure!(serial == 0 && matches!(good(Message::SetRecord, &answer)?, Answer::Written(_)), "{answer:?}");
    // Sets of one key that are sent together take effect in their order.
    let values: Vec<_> = (0..500).map(|i| i.to_string()).collect();
    let sets: Vec<_> = values.iter().map(|value| Request::SetValue { key: "counter", value }).collect();
    connection.send_all(&sets).await?;
    for _ in &sets {
        let (_, answer) = connection.receive().await?.context("closed")?;
        assert_eq!(good(Message::SetValue, &answer)?, Answer::Null);
    }
    cluster.nodes[0].has("counter", Some("499")).await;
    broker.remove().await
}

async fn a_batch_and_a_scan(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new()).await?;
    let node = &cluster.nodes[0];
    let mut connection = RpcConnection::connect(node.avro_port).await?;
    let keys: Vec<_> = (0..3000).map(|i| format!("key/{i:05}")).collect();
    let mut operations: Vec<_> = keys.iter().map(|key| Operation::set(key, key, 0)).collect();
    operations.push(Operation::get("canary"));
    operations.push(Operation::get("never"));
    operations.push(Operation::set(" ", "", 0));
    operations.push(Operation::delete(&keys[0]));
    let count = operations.len();
    connection
        .call(Request::Batch(operations), |answer| {
            let Ok(Answer::Batch(results)) = answer else { panic!("{answer:?}") };
            assert_eq!(results.len(), count);
            assert!(results[..3000].iter().all(|result| matches!(result, BatchResult::Written(_))));
            assert!(matches!(&results[3000], BatchResult::Read(read) if read.record.is_some_and(|r| r.value == "alive")));
            assert!(matches!(&results[3001], BatchResult::Read(read) if read.record.is_none()));
            assert!(matches!(&results[3002], BatchResult::Failed(RequestError { code: ErrorCode::BadRequest, .. })));
            assert!(matches!(&results[3003], BatchResult::Written(written) if written.ttl == -1));
        })
        .await?;
    // The delete was the last of all.
    node.has(&keys[0], None).await;
    for key in &keys[1..] {
        node.has(key, Some(key)).await;
    }
    let (mut found, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let scan =
            ScanRequest { prefix: "key/", start: "key/00010", end: "key/02000", limit: 700, cursor: &cursor };
        let next = connection
            .call(Request::Scan(scan), |answer| {
                let Ok(Answer::Page(page)) = answer else { panic!("{answer:?}") };
                assert!(page.records.len() <= 700);
                found.extend(page.records.iter().map(|(record, position)| {
                    assert!(position.offset >= 0 && record.value == record.key);
                    record.key.to_string()
                }));
                page.cursor.to_string()
            })
            .await?;
        pages += 1;
        if next.is_empty() {
            break;
        }
        cursor = next;
    }
    assert_eq!((found.as_slice(), pages), (&keys[10..2000], 3));
    // Answers that are too many bytes for one frame are cut off, not sent.
    let large = "v".repeat(1 << 20);
    node.api().set("large", &large).await?.expect(200);
    node.has("large", Some(&large)).await;
    connection
        .call(Request::Batch(vec![Operation::get("large"); 1000]), |answer| {
            let Ok(Answer::Batch(results)) = answer else { panic!("{answer:?}") };
            let found = results.iter().filter(|result| matches!(result, BatchResult::Read(_))).count();
            assert!((16..=17).contains(&found), "{found}");
            assert!(matches!(
                &results[999],
                BatchResult::Failed(RequestError { code: ErrorCode::TooLarge, .. })
            ));
        })
        .await?;
    alive(&cluster).await
}

async fn frames_are_limited(ctx: Ctx) -> Result<()> {
    let options = Options::new().env("MAX_VALUE_BYTES", "100000").env("MAX_FRAME_BYTES", "200000");
    let cluster = one_node(&ctx, options).await?;
    let port = cluster.nodes[0].avro_port;
    // With an answer, as the frame says whose it is.
    let mut connection = RpcConnection::connect(port).await?;
    connection.send_bytes(&[9i32, 1, 200_001].map(i32::to_be_bytes).concat()).await?;
    let (serial, answer) = connection.receive().await?.context("closed without an answer")?;
    let failure = Answer::decode(Message::GetValue, &answer)?.expect_err("it is too large");
    ensure!(serial == 9 && failure.to_string().contains("MAX_FRAME_BYTES"), "{serial}: {failure}");
    connection.closed().await?;
    for (what, bytes) in [
        ("too many buffers", [1i32, 1 << 20, 0]),
        ("a negative count", [1, -1, 0]),
        ("a negative length", [1, 1, -1]),
    ] {
        let mut connection = RpcConnection::connect(port).await?;
        connection.send_bytes(&bytes.map(i32::to_be_bytes).concat()).await?;
        connection.closed().await.context(what)?;
    }
    // Without a handshake there is no answer that the client could read.
    let mut connection = RpcConnection::open(port).await?;
    connection.send_bytes(&[9i32, 1, 1 << 30].map(i32::to_be_bytes).concat()).await?;
    connection.closed().await?;
    alive(&cluster).await
}

async fn idle_and_half_sent_connections_are_closed(ctx: Ctx) -> Result<()> {
    let options = Options::new().env("REQUEST_TIMEOUT", "1s").env("IDLE_TIMEOUT", "2s");
    let cluster = one_node(&ctx, options).await?;
    let port = cluster.nodes[0].avro_port;
    let mut silent = RpcConnection::open(port).await?;
    let mut idle = RpcConnection::connect(port).await?;
    let mut half = RpcConnection::connect(port).await?;
    half.send_bytes(&[1i32, 1, 100].map(i32::to_be_bytes).concat()).await?;
    let started = Instant::now();
    let (silent, half) = tokio::join!(silent.closed(), half.closed());
    silent.context("no handshake")?;
    half.context("half a frame")?;
    ensure!(started.elapsed() > Duration::from_millis(900), "closed after {:?}", started.elapsed());
    idle.closed().await.context("idle")?;
    ensure!(started.elapsed() > Duration::from_millis(1900), "closed after {:?}", started.elapsed());
    alive(&cluster).await
}

async fn a_client_that_never_reads_costs_no_memory(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new().env("REQUEST_TIMEOUT", "2s")).await?;
    let node = &cluster.nodes[0];
    let large = "v".repeat(1 << 20);
    node.api().set("large", &large).await?.expect(200);
    node.has("large", Some(&large)).await;
    let before = node.peak_resident_bytes().context("Linux tells")?;
    // Four gigabytes of answers, which nobody takes.
    let mut greedy = Vec::new();
    for _ in 0..4 {
        let mut connection = RpcConnection::connect(node.avro_port).await?;
        connection.send_all(&vec![Request::GetValue { key: "large" }; 1000]).await?;
        greedy.push(connection);
    }
    // The node gives up on them; until then they cost what their sockets hold.
    wait::until("they are closed", START, || async {
        let now = node.peak_resident_bytes().unwrap_or(u64::MAX);
        assert!(now < before + (100 << 20), "{} MiB more", (now - before) >> 20);
        match node.api().metric("bitacora_connections{interface=\"rpc\"}").await {
            Ok(0.0) => Ok(()),
            other => Err(format!("{other:?} are open")),
        }
    })
    .await;
    alive(&cluster).await
}

async fn connections_are_limited(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new().env("MAX_CONNECTIONS", "3")).await?;
    let port = cluster.nodes[0].avro_port;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(RpcConnection::connect(port).await?);
    }
    RpcConnection::open(port).await?.closed().await?;
    for connection in &mut open {
        assert_eq!(connection.value("canary").await?, Ok(Some("alive".to_string())));
    }
    drop(open.pop());
    wait::until("there is room again", START, || async {
        RpcConnection::connect(port).await.map(drop).map_err(|error| format!("{error:#}"))
    })
    .await;
    Ok(())
}

async fn a_stopping_node_ends_what_it_began_and_refuses_the_rest(ctx: Ctx) -> Result<()> {
    let broker = ctx.own_broker().await?;
    let options = Options::new().brokers(broker.address()).env("SHUTDOWN_GRACE", "15s");
    let cluster = one_node(&ctx, options).await?;
    let node = &cluster.nodes[0];
    let mut connection = RpcConnection::connect(node.avro_port).await?;
    broker.pause().await?;
    connection.send_all(&[Request::SetValue { key: "begun", value: "v" }]).await?;
    // It has been taken in once a call behind it is answered.
    let mut get = Vec::new();
    Request::GetValue { key: "canary" }.encode(&mut get);
    connection.send_message(1, &get).await?;
    assert_eq!(connection.receive().await?.context("closed")?.0, 1);
    node.signal(e2e::process::Signal::TERM);
    // Further calls are refused as soon as the node stops, and it says so.
    let mut read = Vec::new();
    Request::GetRecord { key: "canary" }.encode(&mut read);
    let failure = loop {
        connection.send_message(2, &read).await?;
        let (serial, answer) = connection.receive().await?.context("closed")?;
        assert_eq!(serial, 2, "the set can't be acknowledged");
        if let Err(failure) = Answer::decode(Message::GetRecord, &answer)? {
            break failure;
        }
    };
    ensure!(matches!(&failure, Failure::Declared(error) if error.code == ErrorCode::NotReady), "{failure:?}");
    broker.resume().await?;
    let (serial, answer) = connection.receive().await?.context("closed with a set under way")?;
    assert_eq!((serial, good(Message::SetValue, &answer)?), (0, Answer::Null));
    connection.closed().await?;
    let (status, _) = node.ended(Duration::from_secs(20)).await;
    ensure!(status.success(), "{status}");
    node.spawn()?;
    node.ready().await;
    node.has("begun", Some("v")).await;
    broker.remove().await
}
