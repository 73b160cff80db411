//! What TLS and tokens cost: GETs over HTTP and over the Avro RPC with TLS and without, nginx with it, and GETs that show a token.

use anyhow::Result;
use bitacora_protocol::token::{Scope, Token, TokenLine};
use e2e::certificates::Certified;
use e2e::http::Api;
use e2e::measure::child::{Job, Measured, against};
use e2e::measure::load::{Call, Load};
use e2e::measure::peers::{DevNode, Peer};
use e2e::measure::row::{Figure, Row};
use e2e::measure::{key, results};
use e2e::runner::Ctx;

use crate::size::{VALUE_BYTES, size};

const CONNECTIONS: usize = 64;
const DEPTH: usize = 16;
const HTTP: &str = "HTTP GET of one key over TLS, 64 connections";
const TOKEN: &str = "HTTP GET of one key with a token, 64 connections";
const RPC: &str = "RPC GET over TLS, 64 connections, pipelined by 16";

pub async fn run(ctx: Ctx) -> Result<()> {
    let certified = Certified::create(&ctx.dir)?;
    let plain = filled(&ctx.dir.join("plain")).await?;
    let body = Api::new(plain.http).get(&key(0)).await?.expect(200).text();
    drop(filled(&ctx.dir.join("tls")).await?);
    let node = DevNode::start_over_tls(&ctx.dir.join("tls"), &certified).await?;
    let nginx = Peer::nginx_over_tls(&body, &ctx.dir, &certified).await?;
    let authority = Some(certified.authority_pem);
    let load = |call, port, depth, authority| {
        Job::Load(Load { depth, authority, ..Load::new(call, port, CONNECTIONS, 1, size().round) })
    };
    let get = |port, authority| load(Call::HttpGet, port, 1, authority);
    let rpc = |port, authority| load(Call::AvroGet, port, DEPTH, authority);
    let (mut http, mut http_plain, mut of_nginx) = (Vec::new(), Vec::new(), Vec::new());
    let (mut avro, mut avro_plain) = (Vec::new(), Vec::new());
    let (guarded, token) = with_token(&ctx.dir).await?;
    let with_token = Job::Load(Load {
        token: Some(token.secret().to_owned()),
        ..Load::new(Call::HttpGet, guarded.http, CONNECTIONS, 1, size().round)
    });
    let mut shown = Vec::new();
    for _ in 0..size().rounds {
        http.push(against(&[node.pid()], &get(node.http, authority.clone())).await?);
        http_plain.push(against(&[plain.pid()], &get(plain.http, None)).await?);
        shown.push(against(&[guarded.pid()], &with_token).await?);
        if let Some(nginx) = &nginx {
            of_nginx.push(against(&nginx.pids()?, &get(nginx.port, authority.clone())).await?);
        }
        avro.push(against(&[node.pid()], &rpc(node.rpc, authority.clone())).await?);
        avro_plain.push(against(&[plain.pid()], &rpc(plain.rpc, None)).await?);
    }
    let of_nginx = nginx.as_ref().map(|_| &of_nginx[..]);
    let rows = |work, peer, ours: &[Measured], theirs: Option<&[Measured]>| {
        [Figure::Rate("calls/s"), Figure::Cpu, Figure::P99]
            .map(|figure| Row::of_rounds(("tls", work, peer), figure, ours, theirs))
    };
    results::add(
        [
            rows(HTTP, "the same without TLS", &http, Some(&http_plain)),
            rows(HTTP, "nginx return 200 over TLS", &http, of_nginx),
            rows(TOKEN, "the same without tokens", &shown, Some(&http_plain)),
            rows(RPC, "the same without TLS", &avro, Some(&avro_plain)),
        ]
        .concat(),
    );
    Ok(())
}

/// A node with keys that asks for tokens, and one that may read.
async fn with_token(dir: &std::path::Path) -> Result<(DevNode, Token)> {
    let folder = dir.join("tokens");
    drop(filled(&folder).await?);
    let token = Token::of([7; 32]);
    let line = TokenLine::of(&token, "reader".to_owned(), vec![Scope::Read], None);
    let file = dir.join("tokens.jsonl");
    std::fs::write(&file, serde_json::to_string(&line)?)?;
    let file = file.display().to_string();
    Ok((DevNode::start(&folder, &["--tokens-file", &file, "--anonymous", "member"]).await?, token))
}

/// A node with keys, in a folder of its own.
async fn filled(dir: &std::path::Path) -> Result<DevNode> {
    std::fs::create_dir_all(dir)?;
    let node = DevNode::start(dir, &[]).await?;
    node.fill(1_000, VALUE_BYTES).await?;
    Ok(node)
}
