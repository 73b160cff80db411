//! The names of Unicode's characters, every one of them, on every node.

use anyhow::{Result, ensure};
use e2e::cluster::{Node, START};
use e2e::http::{Answer, bulk, encode};
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};

pub fn tests() -> Vec<Test> {
    tests![Servers: unicode_names_are_on_every_node_after_a_restart]
}

/// Characters with a name of their own; those of Han and Hangul are named by a rule, and too many.
fn names() -> Vec<(String, String)> {
    ('\0'..=char::MAX)
        .filter_map(|c| Some((c, unicode_names2::name(c)?.to_string())))
        .filter(|(_, name)| !name.starts_with("CJK ") && !name.starts_with("HANGUL SYLLABLE"))
        // The character itself is in the key: text of every script, combining marks, characters that change direction.
        .map(|(c, name)| (format!("U+{:04X} {c}", u32::from(c)), name))
        .collect()
}

async fn all_are_at(node: &Node, data: &[(String, String)]) -> Result<()> {
    let request = |(key, _): &(String, String)| {
        format!("GET /rpc/cluster?key={} HTTP/1.1\r\nHost: node\r\n\r\n", encode(key)).into_bytes()
    };
    let check = |(key, name): &(String, String), answer: &Answer| {
        ensure!(answer.value().as_ref() == Some(name), "{}: {key:?} is {answer}, not {name:?}", node.name);
        Ok(())
    };
    bulk(node.api_port, data, (4, 32), request, check).await
}

async fn unicode_names_are_on_every_node_after_a_restart(ctx: Ctx) -> Result<()> {
    let data = names();
    assert!(data.len() >= 30_000, "only {} names", data.len());
    let cluster = ctx.cluster().await?;
    let [writer, second, third] = &cluster.nodes[..] else { unreachable!("three nodes") };
    let request = |(key, name): &(String, String)| {
        let head =
            format!("POST /rpc?key={} HTTP/1.1\r\nHost: node\r\nContent-Length: {}", encode(key), name.len());
        format!("{head}\r\n\r\n{name}").into_bytes()
    };
    let acknowledged = |(key, _): &(String, String), answer: &Answer| {
        ensure!(answer.status == 200, "setting {key:?}: {answer}");
        Ok(())
    };
    // 64 writes in flight.
    bulk(writer.api_port, &data, (64, 1), request, acknowledged).await?;
    for node in [second, third] {
        wait::until("it has applied everything", START, || async {
            let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
            if status["store"]["records"] == data.len() { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }
    tokio::try_join!(all_are_at(second, &data), all_are_at(third, &data))?;
    third.kill();
    third.spawn()?;
    third.ready().await;
    all_are_at(third, &data).await
}
