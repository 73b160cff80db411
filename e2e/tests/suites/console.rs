//! The console at `/`, in a real browser. What a user does there is in `e2e/console/`.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bitacora_protocol::token::{Scope, Token, TokenLine};
use e2e::cluster::{START, node_binary};
use e2e::http::Api;
use e2e::process::Process;
use e2e::runner::{Ctx, Test};
use e2e::{browser, ports, tests, wait};
use reqwest::Method;

pub fn tests() -> Vec<Test> {
    tests![
        ServersAndBrowser: it_shows_five_members_and_moves_when_its_node_dies;
        Browser: keys_are_browsed, records_are_written_changed_and_deleted, the_keyboard_alone_will_do,
            hostile_text_is_never_markup, ten_thousand_keys_and_a_mebibyte_are_no_burden, axe_finds_nothing_at_any_size,
            a_write_is_read_back, a_watch_shows_changes, a_token_is_asked_for
    ]
}

/// Runs a flow at a node of its own.
async fn at_a_node(ctx: Ctx, flow: &str) -> Result<()> {
    at_a_node_with(ctx, &[], flow, &[]).await
}

/// Runs a flow, with arguments, at a node of its own, with flags.
async fn at_a_node_with(ctx: Ctx, flags: &[&OsStr], flow: &str, arguments: &[&str]) -> Result<()> {
    let port = ports::run_of(2);
    let mut command = Command::new(node_binary().await?);
    command.args(["dev", "--nodes", "1", "--port", &port.to_string(), "--data-dir"]);
    command.arg(ctx.dir.join("data")).args(flags).current_dir(&ctx.dir);
    let _dev = Process::spawn(command, &ctx.dir.join("dev.log"))?;
    let api = Api::new(port);
    wait::until("the node is ready", START, || async {
        let answer = api.call(Method::GET, "/health").await.map_err(|error| format!("{error:#}"))?;
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    let base = format!("http://127.0.0.1:{port}");
    let arguments = [&[&*base], arguments].concat();
    browser::run_flow(&ctx.dir, flow, &arguments, async |line| {
        println!("console: {line}");
        Ok(())
    })
    .await
}

async fn keys_are_browsed(ctx: Ctx) -> Result<()> {
    at_a_node(ctx, "browse").await
}

async fn records_are_written_changed_and_deleted(ctx: Ctx) -> Result<()> {
    at_a_node(ctx, "write").await
}

async fn the_keyboard_alone_will_do(ctx: Ctx) -> Result<()> {
    at_a_node(ctx, "keyboard").await
}

async fn hostile_text_is_never_markup(ctx: Ctx) -> Result<()> {
    at_a_node(ctx, "text").await
}

async fn ten_thousand_keys_and_a_mebibyte_are_no_burden(ctx: Ctx) -> Result<()> {
    at_a_node(ctx, "much").await
}

async fn axe_finds_nothing_at_any_size(ctx: Ctx) -> Result<()> {
    at_a_node(ctx, "everybody").await
}

async fn a_write_is_read_back(ctx: Ctx) -> Result<()> {
    at_a_node(ctx, "session").await
}

async fn a_watch_shows_changes(ctx: Ctx) -> Result<()> {
    at_a_node(ctx, "watch").await
}

async fn a_token_is_asked_for(ctx: Ctx) -> Result<()> {
    let (good, unknown) = (Token::of([1; 32]), Token::of([2; 32]));
    let scopes = vec![Scope::Read, Scope::Write, Scope::Member];
    let (tokens, member) = (ctx.dir.join("tokens"), ctx.dir.join("member"));
    let line = TokenLine::of(&good, "everything".to_owned(), scopes, None);
    std::fs::write(&tokens, serde_json::to_string(&line)?).context("writing the tokens")?;
    std::fs::write(&member, good.secret()).context("writing the member's token")?;
    let flags =
        ["--tokens-file".as_ref(), tokens.as_os_str(), "--member-token-file".as_ref(), member.as_os_str()];
    at_a_node_with(ctx, &flags, "token", &[good.secret(), unknown.secret()]).await
}

async fn it_shows_five_members_and_moves_when_its_node_dies(ctx: Ctx) -> Result<()> {
    const MEMBERS: usize = 5;
    let cluster = ctx.cluster_with(MEMBERS, e2e::cluster::Options::new()).await?;
    let base = cluster.nodes[0].http_url();
    let page = cluster.nodes[0].api().call(Method::GET, "/").await?.expect(200);
    let policy = page.header("content-security-policy").context("it has a policy")?;
    ensure!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    ensure!(page.body.len() <= 100_000, "the console has {} bytes", page.body.len());
    println!("console: {} bytes", page.body.len());
    let count = MEMBERS.to_string();
    browser::run_flow(&ctx.dir, "shows", &[&base, &count], async |line| {
        println!("console: {line}");
        Ok(())
    })
    .await?;
    browser::run_flow(&ctx.dir, "dies", &[&base, &count], async |line| {
        match line.strip_prefix("kill ") {
            Some("another") => cluster.nodes[MEMBERS - 1].kill(),
            Some("this") => cluster.nodes[0].kill(),
            Some(address) => {
                let node = cluster.nodes.iter().find(|node| node.http_url() == address);
                node.with_context(|| format!("{address} is no node"))?.kill();
            }
            None => println!("console: {line}"),
        }
        Ok(())
    })
    .await
}
