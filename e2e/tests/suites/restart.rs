//! A node that comes back has everything, whatever ended it and whatever is left of its data.

use std::time::Duration;

use anyhow::Result;
use e2e::cluster::{Cluster, Options, START};
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::future::try_join_all;

pub fn tests() -> Vec<Test> {
    tests![
        Servers: a_killed_node_comes_back_with_all_data, a_stopped_node_comes_back_with_all_data,
            a_lost_data_folder_comes_back_with_all_data, a_node_killed_while_it_applies_loses_nothing,
            all_nodes_killed_at_once_come_back_with_all_data, a_write_to_a_node_that_has_just_started_is_done
    ]
}

const KEYS: usize = 300;

async fn write_all(cluster: &Cluster, node: usize, what: &str) -> Result<()> {
    let api = cluster.nodes[node].api();
    let writes = (0..KEYS).map(|i| {
        let (api, value) = (api.clone(), format!("{what} {i}"));
        async move { api.set(&format!("key-{i}"), &value).await }
    });
    for answer in try_join_all(writes).await? {
        answer.expect(200);
    }
    Ok(())
}

/// Writes, ends node 0 by `end`, changes things while it is away, starts it, and compares every key.
async fn survives(ctx: Ctx, end: impl AsyncFnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let cluster = ctx.cluster().await?;
    let others = [cluster.nodes[1].api(), cluster.nodes[2].api()];
    write_all(&cluster, 0, "before").await?;
    others[0].set("deleted before", "value").await?.expect(200);
    others[0].delete("deleted before").await?.expect(200);
    cluster.all_have("key-299", Some("before 299")).await;
    end(&cluster).await?;
    for i in (0..KEYS).step_by(3) {
        others[0].set(&format!("key-{i}"), &format!("while away {i}")).await?.expect(200);
    }
    for i in (1..KEYS).step_by(3) {
        others[1].delete(&format!("key-{i}")).await?.expect(200);
    }
    others[1].set("new", "while away").await?.expect(200);
    cluster.nodes[0].spawn()?;
    cluster.formed().await;
    for i in 0..KEYS {
        let expected = match i % 3 {
            0 => Some(format!("while away {i}")),
            1 => None,
            _ => Some(format!("before {i}")),
        };
        cluster.all_have(&format!("key-{i}"), expected.as_deref()).await;
    }
    cluster.all_have("new", Some("while away")).await;
    cluster.all_have("deleted before", None).await;
    // It is a full member again.
    cluster.nodes[0].api().set("after", "value").await?.expect(200);
    cluster.all_have("after", Some("value")).await;
    Ok(())
}

async fn a_killed_node_comes_back_with_all_data(ctx: Ctx) -> Result<()> {
    survives(ctx, async |cluster| {
        cluster.nodes[0].kill();
        Ok(())
    })
    .await
}

async fn a_stopped_node_comes_back_with_all_data(ctx: Ctx) -> Result<()> {
    survives(ctx, async |cluster| {
        let (status, _) = cluster.nodes[0].terminate(Duration::from_secs(10)).await;
        assert!(status.success(), "SIGTERM is a request, not a failure: {status}");
        Ok(())
    })
    .await
}

async fn a_lost_data_folder_comes_back_with_all_data(ctx: Ctx) -> Result<()> {
    survives(ctx, async |cluster| {
        cluster.nodes[0].kill();
        cluster.nodes[0].wipe()
    })
    .await
}

async fn a_node_killed_while_it_applies_loses_nothing(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster().await?;
    // Kills at different moments of a stream of writes; the data folder stays.
    for round in 0..3 {
        let what = format!("round {round}");
        let write = write_all(&cluster, 1 + round % 2, &what);
        let kill = async {
            cluster.nodes[0]
                .has(&format!("key-{}", round * 100), Some(&format!("round {round} {}", round * 100)))
                .await;
            cluster.nodes[0].kill();
            cluster.nodes[0].spawn()
        };
        let (written, killed) = tokio::join!(write, kill);
        written?;
        killed?;
        cluster.nodes[0].ready().await;
        for i in 0..KEYS {
            cluster.nodes[0].has(&format!("key-{i}"), Some(&format!("round {round} {i}"))).await;
        }
    }
    Ok(())
}

async fn all_nodes_killed_at_once_come_back_with_all_data(ctx: Ctx) -> Result<()> {
    let cluster = ctx.cluster_with(3, Options::new()).await?;
    write_all(&cluster, 0, "value").await?;
    for node in &cluster.nodes {
        node.kill();
    }
    // One of them without its data.
    cluster.nodes[2].wipe()?;
    for node in &cluster.nodes {
        node.spawn()?;
    }
    cluster.formed().await;
    for i in 0..KEYS {
        cluster.all_have(&format!("key-{i}"), Some(&format!("value {i}"))).await;
    }
    Ok(())
}

/// A balancer may send one as soon as the port is open. The node knows its topic some tenths of a second later.
async fn a_write_to_a_node_that_has_just_started_is_done(ctx: Ctx) -> Result<()> {
    let mut cluster = ctx.no_nodes(Options::new()).await?;
    let node = cluster.add().await?;
    node.spawn()?;
    let answer = wait::try_until(START, || async {
        // Until the port is open there is no answer at all.
        node.api().set("key", "value").await.map_err(|error| format!("{error:#}"))
    });
    answer.await.map_err(anyhow::Error::msg)?.expect(200);
    node.ready().await;
    node.has("key", Some("value")).await;
    Ok(())
}
