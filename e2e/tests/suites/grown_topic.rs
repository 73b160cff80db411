//! Keys that another partition takes since the topic was given more: reads find them at once, and no condition is compared with what
//! only one of the two partitions says.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::cluster::Options;
use e2e::http::{Answer, Api, encode};
use e2e::runner::{Ctx, Test};
use e2e::topic::java_partition;
use e2e::{tests, wait};
use reqwest::Method;

pub fn tests() -> Vec<Test> {
    tests![Servers: a_key_that_moved_is_read_and_takes_no_conditional_write]
}

const DEADLINE: Duration = Duration::from_secs(30);
const GROWN: usize = 12;

async fn partitions(api: &Api) -> Result<usize> {
    Ok(api.status().await?["partitions"].as_array().map_or(0, Vec::len))
}

async fn call(api: &Api, method: Method, key: &str, header: (&str, &str)) -> Result<Answer> {
    let body = if method == Method::POST { b"conditional".to_vec() } else { Vec::new() };
    let headers = [("content-type", "text/plain; charset=utf-8"), header];
    api.send(method, &format!("/rpc?key={}", encode(key)), &headers, body).await
}

/// Every condition is refused with 409, and nothing changes.
async fn refuses_conditions(api: &Api, key: &str, value: &str) -> Result<()> {
    let before = api.get_with(key, "consistency=strong").await?.expect(200);
    ensure!(before.value().as_deref() == Some(value), "{before}");
    let version = before.header("etag").unwrap_or_default().to_owned();
    for (method, header) in [
        (Method::POST, ("if-match", version.as_str())),
        (Method::POST, ("if-match", "*")),
        (Method::POST, ("if-none-match", "*")),
        (Method::DELETE, ("if-match", version.as_str())),
    ] {
        let refused = call(api, method, key, header).await?.expect(409);
        ensure!(refused.message().contains("in another partition"), "{refused}");
    }
    let after = api.get_with(key, "consistency=strong").await?.expect(200);
    ensure!(after.position() == before.position(), "{after} is not {before}");
    Ok(())
}

async fn a_key_that_moved_is_read_and_takes_no_conditional_write(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(2, Options::new()).await?;
    let [one, other] = [0, 1].map(|node| cluster.nodes[node].api());
    let before = partitions(&one).await?;
    ensure!((1..GROWN).contains(&before), "{before} partitions");
    let moves = |key: &String| {
        java_partition(key.as_bytes(), before as i32) != java_partition(key.as_bytes(), GROWN as i32)
    };
    let (moved, stayed): (Vec<_>, Vec<_>) = (0..40).map(|i| format!("key-{i}")).partition(moves);
    for key in moved.iter().chain(&stayed) {
        call(&one, Method::POST, key, ("if-none-match", "*")).await?.expect(200);
    }
    cluster.topic.grow(GROWN).await?;
    for api in [&one, &other] {
        let grown = async || match partitions(api).await {
            Ok(GROWN) => Ok(()),
            other => Err(format!("{other:?}")),
        };
        wait::try_until(DEADLINE, grown).await.map_err(anyhow::Error::msg)?;
        // The node has not read the new partitions yet, perhaps, and the key is in none of them.
        for level in ["latest", "strong"] {
            let read = async || match api.get_with(&moved[0], &format!("consistency={level}")).await {
                Ok(answer) if answer.status == 503 => Err(answer.to_string()),
                Ok(answer) => Ok(answer),
                Err(error) => Err(format!("{error:#}")),
            };
            let answer = wait::try_until(DEADLINE, read).await.map_err(anyhow::Error::msg)?.expect(200);
            ensure!(answer.value().as_deref() == Some("conditional"), "{level}: {answer}");
        }
    }
    for api in [&one, &other] {
        refuses_conditions(api, &moved[0], "conditional").await?;
    }
    // A plain write goes to the new partition, and the old record is there until it is trimmed.
    one.set(&moved[0], "plain").await?.expect(200);
    refuses_conditions(&other, &moved[0], "plain").await?;
    let version = other.get_with(&stayed[0], "consistency=strong").await?.expect(200);
    let version = version.header("etag").unwrap_or_default().to_owned();
    call(&other, Method::POST, &stayed[0], ("if-match", &version)).await?.expect(200);
    Ok(())
}
