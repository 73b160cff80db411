//! Guessing tokens, and what the time of a refusal tells of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bitacora_node::metrics::Metrics;
use bitacora_node::server::access::needs::Need;
use bitacora_node::server::access::{Access, AccessSettings};
use bitacora_node::service::access::Scopes;
use bitacora_protocol::rpc::Request;
use bitacora_protocol::token::{Scope, Token, TokenLine};
use e2e::http::RawConnection;
use e2e::rpc::RpcConnection;
use e2e::runner::Ctx;
use hdrhistogram::Histogram;
use tokio::net::{TcpSocket, TcpStream};

use super::{SECRET, Tokens, ask, exchange_over, holds, request, statuses, told};

/// Failures of an address in a minute that are answered one by one.
const ALLOWED: usize = 20;
const GUESSES: usize = 500;

/// A connection from an address of this machine's own.
async fn connect_from(from: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.into(), 0)).with_context(|| format!("an address {from}"))?;
    Ok(socket.connect(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).await?)
}

/// A read from an address, with a token; the answer's status.
async fn read_from(from: Ipv4Addr, port: u16, token: &Token) -> Result<u16> {
    let asked =
        request("GET /rpc?key=canary", Some(token)).replacen("Host:", "Connection: close\r\nHost:", 1);
    let received = exchange_over(connect_from(from, port).await?, asked.as_bytes()).await?;
    let statuses = statuses(&received);
    ensure!(statuses.len() == 1 && (statuses[0] == 200) == holds(&received, SECRET), "{statuses:?}");
    Ok(statuses[0])
}

pub async fn who_guesses_tokens_is_slowed_down_and_others_are_not(ctx: Ctx) -> Result<()> {
    let tokens = Tokens::create(&ctx)?;
    let cluster = tokens.node_with_secret(&ctx, tokens.options.clone()).await?;
    let node = &cluster.nodes[0];
    let address = |last: u8| Ipv4Addr::new(127, 0, 0, last);
    let began = Instant::now();
    let mut answers = BTreeMap::<u16, usize>::new();
    // Of the right form: what is not made like a token is never looked up.
    for guess in 0..GUESSES {
        let mut random = [0xab; 32];
        random[..8].copy_from_slice(&guess.to_be_bytes());
        *answers.entry(read_from(address(2), node.api_port, &Token::of(random)).await?).or_default() += 1;
    }
    let took = began.elapsed();
    let (noted, slowed) =
        (answers.remove(&401).unwrap_or_default(), answers.remove(&429).unwrap_or_default());
    ensure!(answers.is_empty(), "guesses were answered {answers:?}");
    // A new minute may have begun, on a machine that is very slow.
    let minutes = 1 + took.as_secs() as usize / 60;
    ensure!((ALLOWED..=ALLOWED * minutes).contains(&noted), "{noted} were answered 401 in {took:?}");
    // From each further address as many, and no more.
    let mut of_others = Vec::new();
    for last in 3..=5 {
        let mut noted = 0;
        for guess in 0..=ALLOWED as u8 {
            noted += usize::from(
                read_from(address(last), node.api_port, &Token::of([guess; 32].map(|byte| byte | 0x80)))
                    .await?
                    == 401,
            );
        }
        of_others.push(noted);
    }
    ensure!(of_others == [ALLOWED; 3], "answered 401 from three more addresses: {of_others:?}");
    // Over the RPC the same are counted, and refused.
    let mut rpc = RpcConnection::connect(node.avro_port).await?;
    let failure = rpc.fails(Request::GetValue { key: "canary" }).await?.to_string();
    ensure!(failure.contains("token"), "{failure}");
    // Who has a good one is answered, from wherever.
    for last in [6, 2] {
        let status = read_from(address(last), node.api_port, &tokens.all).await?;
        ensure!(status == 200, "a good token from 127.0.0.{last} is answered {status}");
    }
    let mut connection = RawConnection::open(node.api_port).await?;
    let metrics = ask(&mut connection, "GET /metrics", Some(&tokens.admin)).await?.text();
    let refusals = |reason: &str| {
        let series = format!("bitacora_access_refusals_total{{reason=\"{reason}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<usize>().ok()).unwrap_or_default()
    };
    ensure!(refusals("unknown_token") + refusals("too_many") >= GUESSES, "they are not counted: {metrics}");
    let lines = node
        .log_tail(100_000)
        .lines()
        .filter(|line| line.contains("the token of the call is not known"))
        .count();
    ensure!(lines <= noted + of_others.len() * ALLOWED, "{lines} lines in the log");
    told(
        "token guessing",
        &format!(
            "{GUESSES} wrong tokens from one address in {took:.1?}: {noted} answered 401, {slowed} answered 429 and closed; 21 from each of three \
             more: {of_others:?} answered 401; a good token is answered 200 from another address, and from the one that guesses, too; \
             {lines} lines in the log"
        ),
    );
    Ok(())
}

/// How many refusals of each kind are timed.
const TIMED: usize = 20_000;

/// Differences of the right token from wrong ones: those that share nothing with it, half of it, all but the last digit.
fn wrong_tokens(right: &str) -> [(&'static str, String); 3] {
    let start = "bitacora_".len();
    let other = |from: usize| -> String {
        let changed = right[from..].chars().map(|digit| if digit == '0' { '1' } else { '0' });
        right[..from].chars().chain(changed).collect()
    };
    [("0", other(start)), ("32", other(start + 32)), ("63", other(right.len() - 1))]
}

/// A comparison that ends at the first difference.
#[inline(never)]
fn naive(shown: &[u8], right: &[u8]) -> bool {
    shown.len() == right.len() && shown.iter().zip(right).all(|(one, other)| one == other)
}

/// The medians in ns of what `refuse` takes for each of three wrong ones, which are tried in turns.
fn medians(wrong: &[(&str, String); 3], mut refuse: impl FnMut(&[u8]) -> bool) -> Result<[u64; 3]> {
    let mut took = [(); 3].map(|()| Histogram::<u64>::new(3).expect("three digits"));
    for turn in 0..3 * TIMED {
        let which = turn % 3;
        let shown = wrong[which].1.as_bytes();
        let began = Instant::now();
        let refused = std::hint::black_box(refuse(std::hint::black_box(shown)));
        let elapsed = began.elapsed().as_nanos() as u64;
        ensure!(refused, "{} digits of a token were enough", wrong[which].0);
        took[which].record(elapsed.max(1))?;
    }
    Ok(took.map(|of_one| of_one.value_at_quantile(0.5)))
}

/// Nothing is asserted of times: they are printed, beside those of a comparison that does end at the first difference.
pub async fn how_long_a_wrong_token_is_looked_at(ctx: Ctx) -> Result<()> {
    let right = Token::of(*b"0123456789abcdefghijklmnopqrstuv");
    let lines: String = (0..100u8)
        .map(|number| {
            let token = if number == 50 { right.clone() } else { Token::of([number; 32]) };
            let scope = if number == 0 { Scope::Member } else { Scope::Read };
            let line = TokenLine::of(&token, format!("t{number}"), vec![scope], None);
            serde_json::to_string(&line).expect("it is JSON") + "\n"
        })
        .collect();
    let tokens_file = ctx.dir.join("tokens");
    std::fs::write(&tokens_file, lines)?;
    let settings = AccessSettings { tokens_file, anonymous: Scopes::default(), open_metrics: false };
    let access = Access::new(settings, Some(&Token::of([0; 32])), Arc::new(Metrics::new()?));
    let access = access.map_err(anyhow::Error::msg)?;
    // The caller whose connection has shown the right one before: what is compared with it is compared, too.
    let caller = Access::caller(&Arc::new(access), "http", IpAddr::from([127, 0, 0, 1]));
    let admits = |shown: &[u8]| caller.admit("get", Need::OneOf(&[Scope::Read]), || [shown]).is_ok();
    let bearer = |token: &str| format!("Bearer {token}");
    let shown = bearer(right.secret());
    ensure!(admits(shown.as_bytes()), "the right token is refused");
    let wrong = wrong_tokens(right.secret()).map(|(shared, token)| (shared, bearer(&token)));
    let of_node = medians(&wrong, |wrong| !admits(wrong))?;
    let of_naive = medians(&wrong, |wrong| !naive(wrong, shown.as_bytes()))?;
    ensure!(admits(shown.as_bytes()), "the right token is refused after wrong ones");
    let quotient = |medians: [u64; 3]| medians[2] as f64 / medians[0] as f64;
    told(
        "timing of the token comparison",
        &format!(
            "refusals of tokens that share 0, 32 and 63 of 64 digits with a right one, in turns, {TIMED} each, in process, 100 tokens \
             known: medians {of_node:?} ns, quotient {:.3}; a comparison that ends at the first difference: {of_naive:?} ns, {:.3}",
            quotient(of_node),
            quotient(of_naive),
        ),
    );
    Ok(())
}
