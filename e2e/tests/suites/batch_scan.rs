//! Batches and scans over HTTP: streamed, in order, and bounded whatever the client does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Options, START};
use e2e::http::{Answer, RawConnection, encode};
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::stream;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub fn tests() -> Vec<Test> {
    tests![
        Servers: results_are_in_order_and_bad_lines_fail_alone, a_large_batch_streams,
            a_line_without_end_costs_its_own_result_only, a_batch_that_nobody_reads_is_given_up,
            a_batch_that_never_ends_is_answered_as_it_comes, a_batch_cut_short_keeps_what_it_began,
            pages_are_in_order_and_survive_writes_in_between, scans_never_show_what_is_gone, wrong_scans_are_refused
    ]
}

async fn one_node(ctx: &Ctx, options: Options) -> Result<Cluster> {
    ctx.cluster_with(1, options).await
}

async fn batch(cluster: &Cluster, lines: &str) -> Result<Vec<Value>> {
    let answer =
        cluster.nodes[0].api().send(Method::POST, "/rpc/batch", &[], lines.as_bytes().to_vec()).await?;
    ensure!(answer.header("content-type") == Some("application/x-ndjson"), "{answer}");
    results(&answer.expect(200).text())
}

fn results(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_string())).collect()
}

async fn results_are_in_order_and_bad_lines_fail_alone(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new().env("MAX_VALUE_BYTES", "1000")).await?;
    let node = &cluster.nodes[0];
    node.api().set("old", "value").await?.expect(200);
    node.has("old", Some("value")).await;
    let large = format!(r#"{{"op":"set","key":"k","value":"{}"}}"#, "v".repeat(1001));
    let long_key = format!(r#"{{"op":"get","key":"{}"}}"#, "k".repeat(1025));
    let cases = [
        (r#"{"op":"set","key":"ü \"1\"","value":"größe","ttl":"1h"}"#, 200, "position"),
        (r#"{"op":"set","key":"two","value":"","ttl":"3600000ms"}"#, 200, "uuid"),
        (r#"{"op":"get","key":"old"}"#, 200, "value"),
        (r#"{"op":"get","key":"never"}"#, 404, "never"),
        (r#"{"op":"delete","key":"never"}"#, 200, "position"),
        ("no json", 400, "line 6"),
        (r#"{"op":"get"}"#, 400, "key"),
        (r#"{"op":"set","key":"k"}"#, 400, "value"),
        (r#"{"op":"set","key":"k","value":1}"#, 400, "string"),
        (r#"{"op":"set","key":"k","value":"v","ttl":"soon"}"#, 400, "soon"),
        (r#"{"op":"set","key":"k","value":"v","ttl":0}"#, 400, "ttl"),
        (r#"{"op":"set","key":"k","value":"v","tll":"1s"}"#, 400, "tll"),
        (r#"{"op":"fly","key":"k"}"#, 400, "fly"),
        (r#"{"op":"get","key":" "}"#, 400, "blank"),
        (&long_key, 400, "1024"),
        (&large, 413, "1000"),
        (r#"{"op":"get","key":"old"} {"#, 400, "line 17"),
        (r#"{"op":"get","key":"old"}"#, 200, "cache"),
    ];
    // The last line needs no end.
    let lines = cases.iter().map(|(line, ..)| *line).collect::<Vec<_>>().join("\n");
    let results = batch(&cluster, &lines).await?;
    assert_eq!(results.len(), cases.len(), "{results:#?}");
    for ((line, status, says), result) in cases.iter().zip(&results) {
        assert_eq!(result["status"], *status, "{line}: {result}");
        assert!(result.to_string().contains(says), "{line}: no {says:?} in {result}");
        assert_eq!(result["message"].is_string(), *status != 200, "{line}: {result}");
    }
    node.has("ü \"1\"", Some("größe")).await;
    node.has("two", Some("")).await;
    let read = node.api().get("old").await?.json();
    for field in ["key", "value", "timestamp", "source", "ttl", "uuid"] {
        assert_eq!(results[2][field], read[field], "as a single get answers: {field}");
    }
    // Nothing of the broken lines is in the log.
    assert_eq!(cluster.topic.read_all().await?.len(), 4);
    // A blank line is no operation.
    let empty = batch(&cluster, "\n \r\n").await?;
    ensure!(empty.is_empty(), "{empty:?}");
    node.api().call(Method::GET, "/rpc/batch").await?.expect(405);
    node.api().call(Method::POST, "/rpc/batch?key=k").await?.expect(400);
    Ok(())
}

/// 50,000 operations on 5,000 keys, sent while the results are read: the last write of each key wins.
async fn a_large_batch_streams(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let body: Vec<Result<Vec<u8>, std::io::Error>> = (0..50)
        .map(|piece| {
            let lines = (piece * 1000..(piece + 1) * 1000)
                .map(|i| format!("{{\"op\":\"set\",\"key\":\"key-{}\",\"value\":\"{i}\"}}\n", i % 5000));
            Ok(lines.collect::<String>().into_bytes())
        })
        .collect();
    let client = e2e::http::client_builder().build()?;
    let url = format!("http://127.0.0.1:{}/rpc/batch", cluster.nodes[0].api_port);
    let answer = client.post(url).body(reqwest::Body::wrap_stream(stream::iter(body))).send().await?;
    let results = results(&answer.text().await?)?;
    assert_eq!(results.len(), 50_000);
    for (i, result) in results.iter().enumerate() {
        assert!(result["status"] == 200 && result["key"] == format!("key-{}", i % 5000), "{i}: {result}");
    }
    for key in (0..5000).step_by(499) {
        cluster.all_have(&format!("key-{key}"), Some(&(45_000 + key).to_string())).await;
    }
    Ok(())
}

/// Sends a head, then pieces as long as `more` gives some.
async fn send_chunked(
    stream: &mut (impl AsyncWriteExt + Unpin),
    mut more: impl FnMut() -> Option<Vec<u8>>,
) -> std::io::Result<()> {
    stream.write_all(b"POST /rpc/batch HTTP/1.1\r\nhost: node\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    while let Some(piece) = more() {
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
        stream.write_all(&piece).await?;
        stream.write_all(b"\r\n").await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

async fn a_line_without_end_costs_its_own_result_only(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new()).await?;
    let node = &cluster.nodes[0];
    let before = node.peak_resident_bytes().context("Linux tells")?;
    let (mut read, mut write) = RawConnection::open(node.api_port).await?.split();
    // 100 MB in one line, between two good ones.
    let mut piece = 0;
    let sent = send_chunked(&mut write, || {
        piece += 1;
        match piece {
            1 => Some(b"{\"op\":\"set\",\"key\":\"before\",\"value\":\"v\"}\n{\"op\":\"set\",\"key\":\"k\",\"value\":\"".to_vec()),
            2..=101 => Some(vec![b'x'; 1_000_000]),
            102 => Some(b"\"}\n{\"op\":\"set\",\"key\":\"after\",\"value\":\"v\"}\n".to_vec()),
            _ => None,
        }
    });
    let mut text = String::new();
    let received = async {
        let mut chunk = vec![0; 16 * 1024];
        while !text.contains("\r\n0\r\n\r\n") {
            let n = read.read(&mut chunk).await?;
            ensure!(n > 0, "closed after {text}");
            text.push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
        anyhow::Ok(())
    };
    let (sent, received) = tokio::join!(sent, received);
    sent?;
    received?;
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('{')).collect();
    let statuses: Vec<Value> =
        results(&lines.join("\n"))?.iter().map(|result| result["status"].clone()).collect();
    assert_eq!(statuses, [200, 413, 200], "{text}");
    let more = node.peak_resident_bytes().context("Linux tells")?.saturating_sub(before) >> 20;
    ensure!(more < 60, "{more} MiB more");
    node.has("after", Some("v")).await;
    Ok(())
}

async fn a_batch_that_nobody_reads_is_given_up(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new().env("REQUEST_TIMEOUT", "2s")).await?;
    let node = &cluster.nodes[0];
    let large = "v".repeat(1 << 20);
    node.api().set("large", &large).await?.expect(200);
    node.has("large", Some(&large)).await;
    let before = node.peak_resident_bytes().context("Linux tells")?;
    let (_unread, mut write) = RawConnection::open(node.api_port).await?.split();
    let started = Instant::now();
    // It ends when the node closes the connection.
    let endless = send_chunked(&mut write, || Some(b"{\"op\":\"get\",\"key\":\"large\"}\n".repeat(1000)));
    let ended = tokio::time::timeout(START, endless).await.context("the node takes in the batch for ever")?;
    ensure!(ended.is_err(), "it was taken in whole");
    ensure!(started.elapsed() > Duration::from_secs(1), "closed after {:?}", started.elapsed());
    let more = node.peak_resident_bytes().context("Linux tells")?.saturating_sub(before) >> 20;
    ensure!(more < 100, "{more} MiB more");
    node.api().get("large").await?.expect(200);
    Ok(())
}

async fn a_batch_that_never_ends_is_answered_as_it_comes(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new().env("REQUEST_TIMEOUT", "2s")).await?;
    let node = &cluster.nodes[0];
    let (mut read, mut write) = RawConnection::open(node.api_port).await?.split();
    write.write_all(b"POST /rpc/batch HTTP/1.1\r\nhost: node\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    let mut text = String::new();
    let mut chunk = vec![0; 16 * 1024];
    for i in 0..5 {
        let line = format!("{{\"op\":\"set\",\"key\":\"key-{i}\",\"value\":\"v\"}}\n");
        write.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await?;
        // Answered before the next one is sent.
        while !text.contains(&format!("key-{i}")) {
            let n = tokio::time::timeout(START, read.read(&mut chunk)).await??;
            ensure!(n > 0, "closed after {text}");
            text.push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
    }
    // One that falls silent is ended, with a result that says why.
    while !text.contains("\r\n0\r\n\r\n") {
        let n = tokio::time::timeout(START, read.read(&mut chunk)).await.context("it is never ended")??;
        if n == 0 {
            break;
        }
        text.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
    ensure!(text.contains("\"status\":408") && text.contains("REQUEST_TIMEOUT"), "{text}");
    Ok(())
}

async fn a_batch_cut_short_keeps_what_it_began(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new()).await?;
    let node = &cluster.nodes[0];
    let (mut read, mut write) = RawConnection::open(node.api_port).await?.split();
    let lines = "{\"op\":\"set\",\"key\":\"whole\",\"value\":\"v\"}\n{\"op\":\"set\",\"key\":\"half";
    let head = "POST /rpc/batch HTTP/1.1\r\nhost: node\r\ncontent-length: 1000\r\n\r\n";
    write.write_all(format!("{head}{lines}").as_bytes()).await?;
    let mut text = String::new();
    let mut chunk = vec![0; 16 * 1024];
    while !text.contains("whole") {
        let n = tokio::time::timeout(START, read.read(&mut chunk)).await??;
        ensure!(n > 0, "closed after {text}");
        text.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
    drop((read, write));
    node.has("whole", Some("v")).await;
    assert_eq!(cluster.topic.read_all().await?.len(), 1);
    Ok(())
}

fn keys(answer: &Answer) -> Vec<String> {
    let page = answer.json();
    let records = page["records"].as_array().expect("a page has records");
    records.iter().map(|record| record["key"].as_str().expect("a record has a key").to_string()).collect()
}

async fn page(cluster: &Cluster, node: usize, query: &str) -> Result<Answer> {
    Ok(cluster.nodes[node].api().call(Method::GET, &format!("/rpc/scan?{query}")).await?.expect(200))
}

async fn fill(cluster: &Cluster, keys: &[String]) -> Result<()> {
    let lines: String =
        keys.iter().map(|key| format!("{}\n", json!({"op": "set", "key": key, "value": key}))).collect();
    let results = batch(cluster, &lines).await?;
    ensure!(
        results.len() == keys.len() && results.iter().all(|result| result["status"] == 200),
        "{results:?}"
    );
    for node in &cluster.nodes {
        wait::until("all keys are there", START, || async {
            let status = node.api().status().await.map_err(|error| error.to_string())?;
            let records = status["store"]["records"].as_u64().unwrap_or_default();
            if records >= keys.len() as u64 { Ok(()) } else { Err(format!("{records} records")) }
        })
        .await;
    }
    Ok(())
}

async fn pages_are_in_order_and_survive_writes_in_between(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let names: Vec<String> =
        (0..1000).map(|i| format!("k{i:03}")).chain(["ä".into(), "k".into(), "\u{1F511}".into()]).collect();
    fill(&cluster, &names).await?;
    let mut sorted = names.clone();
    sorted.sort();
    // Every node gives the same, in pages of any size; a cursor of one node leads on at another.
    for (node, limit) in [(0, 1), (1, 7), (2, 10_000)] {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        for step in 0.. {
            let answer = page(&cluster, (node + step) % 3, &format!("limit={limit}&cursor={cursor}")).await?;
            found.extend(keys(&answer));
            match answer.json()["cursor"].as_str() {
                Some(next) => cursor = next.to_string(),
                None => break,
            }
        }
        assert_eq!(found, sorted, "with limit={limit}");
    }
    assert_eq!(keys(&page(&cluster, 0, "").await?), sorted[..100]);
    assert_eq!(keys(&page(&cluster, 0, "prefix=k00&limit=1000").await?), sorted[1..11]);
    assert_eq!(keys(&page(&cluster, 0, "start=k010&end=k012").await?), ["k010", "k011"]);
    assert_eq!(keys(&page(&cluster, 0, "prefix=k01&start=k018&end=k5").await?), ["k018", "k019"]);
    assert_eq!(keys(&page(&cluster, 0, "start=k5&end=k4").await?), [""; 0]);
    assert_eq!(keys(&page(&cluster, 0, &format!("prefix={}", encode("ä"))).await?), ["ä"]);
    let record = page(&cluster, 0, "prefix=k007").await?.json()["records"][0].clone();
    let single = cluster.nodes[0].api().get("k007").await?;
    assert_eq!(record["position"], single.header("bitacora-position").unwrap_or_default());
    assert_eq!(
        (&record["value"], &record["timestamp"]),
        (&single.json()["value"], &single.json()["timestamp"])
    );
    // Writes before, at and behind the cursor.
    let first = page(&cluster, 0, "prefix=k&limit=101").await?;
    assert_eq!(keys(&first).last().map(String::as_str), Some("k099"));
    let cursor = first.json()["cursor"].as_str().context("there is more")?.to_string();
    for key in ["k099", "k100", "k050"] {
        cluster.nodes[1].api().delete(key).await?.expect(200);
        cluster.all_have(key, None).await;
    }
    for key in ["k0990", "k0000", "k1005"] {
        cluster.nodes[1].api().set(key, "new").await?.expect(200);
        cluster.all_have(key, Some("new")).await;
    }
    let second = page(&cluster, 2, &format!("prefix=k&limit=4&cursor={cursor}")).await?;
    assert_eq!(keys(&second), ["k0990", "k1005", "k101", "k102"]);
    Ok(())
}

async fn scans_never_show_what_is_gone(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new()).await?;
    let node = &cluster.nodes[0];
    let names: Vec<String> = (0..200).map(|i| format!("k{i:03}")).collect();
    fill(&cluster, &names).await?;
    for name in &names[10..] {
        node.api().delete(name).await?.expect(200);
    }
    node.api().set_with("k005", "short", "&ttl=300ms").await?.expect(200);
    node.has(&names[199], None).await;
    node.has("k005", None).await;
    let expected: Vec<_> = (0..10).filter(|i| *i != 5).map(|i| format!("k{i:03}")).collect();
    let answer = page(&cluster, 0, "limit=9").await?;
    assert_eq!(keys(&answer), expected);
    // Behind them are markers alone: a last page may be empty, and then it is the last.
    let mut cursor = answer.json()["cursor"].as_str().map(str::to_string);
    while let Some(at) = cursor {
        let answer = page(&cluster, 0, &format!("limit=9&cursor={at}")).await?;
        assert_eq!(keys(&answer), [""; 0]);
        cursor = answer.json()["cursor"].as_str().map(str::to_string);
    }
    Ok(())
}

async fn wrong_scans_are_refused(ctx: Ctx) -> Result<()> {
    let cluster = one_node(&ctx, Options::new()).await?;
    fill(&cluster, &["a1".into(), "a2".into(), "b".into()]).await?;
    let answer = page(&cluster, 0, "prefix=a&limit=1").await?;
    let cursor = answer.json()["cursor"].as_str().context("there is more")?.to_string();
    let long = "k".repeat(1025);
    for (query, says) in [
        ("limit=0".to_string(), "limit"),
        ("limit=-1".to_string(), "limit"),
        ("limit=10001".to_string(), "10000"),
        ("limit=many".to_string(), "many"),
        ("cursor=x".to_string(), "cursor"),
        ("cursor=%00".to_string(), "cursor"),
        (format!("cursor={}", "A".repeat(5000)), "cursor"),
        (format!("cursor={cursor}"), "another scan"),
        (format!("prefix=b&cursor={cursor}"), "another scan"),
        (format!("prefix={long}"), "1024"),
        (format!("start={long}"), "1024"),
        ("pefix=a".to_string(), "pefix"),
        ("prefix=a&prefix=b".to_string(), "twice"),
        ("prefix=%ff".to_string(), "UTF-8"),
    ] {
        let answer = cluster.nodes[0].api().call(Method::GET, &format!("/rpc/scan?{query}")).await?;
        let answer = answer.expect(400);
        assert!(answer.message().contains(says), "{query:.60}: {answer}");
    }
    cluster.nodes[0].api().call(Method::POST, "/rpc/scan").await?.expect(405);
    Ok(())
}
