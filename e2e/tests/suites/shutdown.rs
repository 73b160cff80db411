//! A node that is told to stop ends what it began, and what it acknowledged stays.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::future::join_all;

pub fn tests() -> Vec<Test> {
    tests![Servers: writes_acknowledged_before_a_stop_are_kept]
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
