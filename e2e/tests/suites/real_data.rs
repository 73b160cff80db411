//! The names of Unicode's characters, every one of them, on every node.

use anyhow::{Result, ensure};
use e2e::http::Api;
use e2e::runner::{Ctx, Test};
use e2e::{tests, wait};
use futures_util::{StreamExt, TryStreamExt, stream};

pub fn tests() -> Vec<Test> {
    tests![Servers: every_unicode_name_is_on_every_node_and_survives_a_restart]
}

const IN_FLIGHT: usize = 64;

/// Characters with a name of their own; those of Han and Hangul are named by a rule, and too many.
fn names() -> Vec<(String, String)> {
    ('\0'..=char::MAX)
        .filter_map(|c| Some((c, unicode_names2::name(c)?.to_string())))
        .filter(|(_, name)| !name.starts_with("CJK ") && !name.starts_with("HANGUL SYLLABLE"))
        // The character itself is in the key: text of every script, combining marks, characters that change direction.
        .map(|(c, name)| (format!("U+{:04X} {c}", u32::from(c)), name))
        .collect()
}

async fn all_are_at(api: &Api, data: &[(String, String)]) -> Result<()> {
    stream::iter(data)
        .map(|(key, name)| async move {
            let answer = api.get_own(key).await?;
            ensure!(answer.value().as_ref() == Some(name), "{key:?} is {answer}, not {name:?}");
            Ok(())
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await
}

async fn every_unicode_name_is_on_every_node_and_survives_a_restart(ctx: Ctx) -> Result<()> {
    let data = names();
    assert!(data.len() >= 30_000, "only {} names", data.len());
    let cluster = ctx.cluster().await?;
    let [writer, second, third] = &cluster.nodes[..] else { unreachable!("three nodes") };
    let api = writer.api();
    stream::iter(&data)
        .map(|(key, name)| {
            let api = &api;
            async move {
                let answer = api.set(key, name).await?;
                ensure!(answer.status == 200, "setting {key:?}: {answer}");
                Ok(())
            }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    for node in [second, third] {
        wait::until("it has applied everything", e2e::cluster::START, || async {
            let status = node.api().status().await.map_err(|error| format!("{error:#}"))?;
            if status["store"]["records"] == data.len() { Ok(()) } else { Err(status.to_string()) }
        })
        .await;
    }
    let (second_api, third_api) = (second.api(), third.api());
    tokio::try_join!(all_are_at(&second_api, &data), all_are_at(&third_api, &data))?;
    third.kill();
    third.spawn()?;
    third.ready().await;
    all_are_at(&third.api(), &data).await
}
