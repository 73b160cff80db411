//! A node that is told to stop ends what it began, and what it acknowledged stays.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use e2e::cluster::Options;
use e2e::http::RawConnection;
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::future::join_all;

pub fn tests() -> Vec<Test> {
    tests![Servers: writes_acknowledged_before_a_stop_are_kept, a_slow_body_ends_with_the_grace]
}

const WRITERS: usize = 32;

async fn writes_acknowledged_before_a_stop_are_kept(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let node = &cluster.nodes[0];
    let count = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    let (count, stopped) = (&count, &stopped);
    let writers = (0..WRITERS).map(|w| {
        let api = node.api();
        async move {
            let mut acknowledged = Vec::new();
            for i in 0.. {
                let key = format!("key-{w}-{i}");
                match api.set(&key, &format!("value {i}")).await {
                    Ok(answer) if answer.status == 200 => {
                        acknowledged.push((key, format!("value {i}")));
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    // Refused, or cut off: only once it was told to stop.
                    Ok(answer) => {
                        assert_eq!(answer.status, 503, "a write got {answer}");
                        break;
                    }
                    Err(error) => {
                        assert!(stopped.load(Ordering::Relaxed), "a write failed before the stop: {error:#}");
                        break;
                    }
                }
            }
            acknowledged
        }
    });
    let stop = async {
        wait::until("the load runs", Duration::from_secs(30), || async {
            match count.load(Ordering::Relaxed) {
                count if count >= 500 => Ok(()),
                count => Err(format!("{count} writes")),
            }
        })
        .await;
        stopped.store(true, Ordering::Relaxed);
        node.terminate(Duration::from_secs(10)).await
    };
    let (acknowledged, (status, took)) = tokio::join!(join_all(writers), stop);
    assert!(status.success(), "it ended with {status} after {took:?}");
    let acknowledged: Vec<_> = acknowledged.into_iter().flatten().collect();
    assert!(acknowledged.len() >= 500, "only {} writes", acknowledged.len());
    for (key, value) in &acknowledged {
        cluster.all_have(key, Some(value)).await;
    }
    // It comes back with them, too.
    node.spawn()?;
    node.ready().await;
    for (key, value) in &acknowledged {
        node.has(key, Some(value)).await;
    }
    Ok(())
}

const SHUTDOWN_GRACE: Duration = Duration::from_secs(4);

/// A client that sends its body more slowly than the node may wait.
async fn a_slow_body_ends_with_the_grace(ctx: Ctx) -> Result<()> {
    let options = Options::new()
        .env("SHUTDOWN_GRACE", format!("{}ms", SHUTDOWN_GRACE.as_millis()))
        .env("DRAIN_DELAY", "0ms");
    let cluster = ctx.cluster_with(1, options).await?;
    let node = &cluster.nodes[0];
    node.api().set("before", "value").await?.expect(200);
    let mut slow = RawConnection::open(node.api_port).await?;
    let body = "v".repeat(1_000);
    let head = format!("POST /rpc?key=slow HTTP/1.1\r\nhost: node\r\ncontent-length: {}\r\n\r\n", body.len());
    slow.write(head.as_bytes()).await?;
    let under_way = tokio::sync::Notify::new();
    let sent = async {
        for (sent, byte) in body.as_bytes().iter().enumerate() {
            if sent == 10 {
                under_way.notify_one();
            }
            // The node may end the connection at any time from the stop on.
            if slow.write(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        unreachable!("the node waited for the whole body");
    };
    let stop = async {
        under_way.notified().await;
        node.terminate(Duration::from_secs(20)).await
    };
    let ((), (status, took)) = tokio::join!(sent, stop);
    println!("shutdown: ended {} ms after SIGTERM, with a grace of {SHUTDOWN_GRACE:?}", took.as_millis());
    assert!(status.success(), "it ended with {status}");
    assert!(took < SHUTDOWN_GRACE, "it ended only after {took:?}");
    node.spawn()?;
    node.ready().await;
    node.has("before", Some("value")).await;
    node.api().get("slow").await?.expect(404);
    Ok(())
}
