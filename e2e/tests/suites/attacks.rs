//! What attackers try at a real node, and what becomes of it. Each test prints a line for each attack, with figures where there are
//! some; docs/security.md has the list of all attacks that tests try.

#[path = "../../../node/tests/support/certificates.rs"]
mod certificates;
mod connections;
mod members;
mod requests;
mod tls;
mod tokens;

use std::time::Duration;

use anyhow::{Context, Result};
use bitacora_protocol::token::{Scope, Token, TokenLine};
use e2e::cluster::{Cluster, Options};
use e2e::http::RawConnection;
use e2e::runner::{Ctx, Test};
use e2e::tests;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::connections::{
    a_low_limit_of_open_files_is_raised, idle_connections_shut_others_out_until_they_are_given_up,
    slow_heads_and_frames_are_given_up, ten_thousand_connections_are_bounded,
};
use self::members::{
    a_rogue_znode_gets_the_questions_of_members_and_no_more, over_tls_a_rogue_znode_gets_nothing,
};
use self::requests::{ambiguous_requests_smuggle_nothing, no_path_leads_round_a_scope};
use self::tls::{
    certificates_that_are_not_good_are_refused, old_and_weak_tls_is_refused, plain_text_and_tls_get_no_answer,
};
use self::tokens::{
    how_long_a_wrong_token_is_looked_at, who_guesses_tokens_is_slowed_down_and_others_are_not,
};

pub fn tests() -> Vec<Test> {
    tests![
        Servers: ten_thousand_connections_are_bounded, a_low_limit_of_open_files_is_raised,
            idle_connections_shut_others_out_until_they_are_given_up, slow_heads_and_frames_are_given_up, old_and_weak_tls_is_refused, plain_text_and_tls_get_no_answer,
            certificates_that_are_not_good_are_refused, who_guesses_tokens_is_slowed_down_and_others_are_not,
            no_path_leads_round_a_scope, ambiguous_requests_smuggle_nothing,
            a_rogue_znode_gets_the_questions_of_members_and_no_more, over_tls_a_rogue_znode_gets_nothing;
        Nothing: how_long_a_wrong_token_is_looked_at
    ]
}

/// What is not there by then never comes.
const PATIENCE: Duration = Duration::from_secs(60);
/// In the store, and in no answer to an attacker.
const SECRET: &str = "the-value-that-nobody-may-see";

/// One line of the run's output.
fn told(attack: &str, what: &str) {
    println!("attacks: {attack}: {what}");
}

/// Tokens that nodes know, and the files by which they do.
struct Tokens {
    /// Reads and writes every key.
    all: Token,
    /// Reads what begins with `shop/`.
    shop: Token,
    admin: Token,
    member: Token,
    options: Options,
}

impl Tokens {
    fn create(ctx: &Ctx) -> Result<Tokens> {
        let token = |number: u8| Token::of([number; 32]);
        let (all, shop, admin, member) = (token(1), token(2), token(3), token(4));
        let line = |token: &Token, name: &str, scopes: &[Scope], prefix: Option<&str>| {
            let line = TokenLine::of(token, name.to_owned(), scopes.to_vec(), prefix.map(str::to_owned));
            serde_json::to_string(&line).expect("it is JSON") + "\n"
        };
        let lines = [
            line(&all, "all", &[Scope::Read, Scope::Write], None),
            line(&shop, "shop", &[Scope::Read], Some("shop/")),
            line(&admin, "admin", &[Scope::Admin], None),
            line(&member, "member", &[Scope::Member], None),
        ];
        let file = |name: &str, text: &str| {
            let path = ctx.dir.join(name);
            std::fs::write(&path, text).context("writing a file of tokens")?;
            anyhow::Ok(path.display().to_string())
        };
        let (tokens_file, member_file) =
            (file("tokens", &lines.concat())?, file("member.token", member.secret())?);
        let options = Options::new().env("TOKENS_FILE", tokens_file).env("MEMBER_TOKEN_FILE", member_file);
        Ok(Tokens { all, shop, admin, member, options })
    }

    /// A node that asks for tokens and holds a secret, with settings of its own.
    async fn node_with_secret(&self, ctx: &Ctx, options: Options) -> Result<Cluster> {
        let mut cluster = ctx.no_nodes(options).await?;
        let node = cluster.add().await?;
        node.spawn()?;
        node.ready().await;
        let mut connection = RawConnection::open(node.api_port).await?;
        let line = format!("POST /rpc?key=canary&value={SECRET}&visible=here");
        let written = ask(&mut connection, &line, Some(&self.all)).await?;
        anyhow::ensure!(written.status == 200, "{written}");
        Ok(cluster)
    }
}

/// A request on a connection that is kept.
fn request(line: &str, token: Option<&Token>) -> String {
    let shown =
        token.map(|token| format!("Authorization: {}\r\n", token.authorization())).unwrap_or_default();
    format!("{line} HTTP/1.1\r\nHost: node\r\n{shown}\r\n")
}

/// Asks by a connection that is kept.
async fn ask(connection: &mut RawConnection, line: &str, token: Option<&Token>) -> Result<e2e::http::Answer> {
    connection.write(request(line, token).as_bytes()).await.context("sending a request")?;
    connection.answer(PATIENCE).await?.context("the node closed the connection")
}

/// Sends these bytes, and returns all that comes until the node closes.
async fn exchange(port: u16, bytes: &[u8]) -> Result<Vec<u8>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.context("connecting")?;
    exchange_over(stream, bytes).await
}

/// The same over a connection that is there.
async fn exchange_over(stream: TcpStream, bytes: &[u8]) -> Result<Vec<u8>> {
    let (mut reader, mut writer) = stream.into_split();
    let mut received = Vec::new();
    let both = async {
        // The node may have had enough before it has read all.
        let send = async {
            let _ = writer.write_all(bytes).await;
        };
        // Whatever came before a reset is an answer.
        let receive = async {
            let _ = reader.read_to_end(&mut received).await;
        };
        tokio::join!(send, receive)
    };
    tokio::time::timeout(PATIENCE, both).await.context("the node does not close the connection")?;
    Ok(received)
}

/// The numbers of the answers in what a node sent.
fn statuses(received: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(received);
    let answers = text.match_indices("HTTP/1.1 ").chain(text.match_indices("HTTP/1.0 "));
    answers.filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

fn holds(received: &[u8], text: &str) -> bool {
    memchr::memmem::find(received, text.as_bytes()).is_some()
}
