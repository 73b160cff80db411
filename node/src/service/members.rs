//! What the members say of themselves: each is asked for its `/status`, so that one node can show the whole cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bitacora_protocol::http::{MemberStatus, MembersStatus, Status};
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::cluster::Membership;
use crate::http_client::{MemberClient, MemberClients, tls_reason};

/// Answers are kept for so long: many who look at once cost the members no more than one does.
const FRESH: Duration = Duration::from_millis(500);
/// A partition takes some 130 bytes. A member that takes longer does not answer.
const STATUS: Question =
    Question { path: "/status", name: "status", max_bytes: 256 * 1024, timeout: Duration::from_secs(1) };

/// Asks the members.
pub struct Members {
    http: MemberClient,
    membership: Arc<dyn Membership>,
    own_address: String,
    /// What the others last answered. Held while they are asked, so that nobody asks them beside that.
    last: Mutex<Option<(Instant, Vec<MemberStatus>)>>,
}

impl Members {
    /// `own_address`: `host:API_PORT` as the membership lists this node.
    ///
    /// # Errors
    /// When the HTTP client can't be built.
    pub fn new(
        clients: &MemberClients,
        membership: Arc<dyn Membership>,
        own_address: String,
    ) -> anyhow::Result<Self> {
        let http = clients.build(|http| http.timeout(STATUS.timeout).tcp_nodelay(true))?;
        Ok(Self { http, membership, own_address, last: Mutex::default() })
    }

    /// This node's own status, and behind it what the others say, or why they don't. Takes no longer than a second or two, whatever
    /// the others do.
    pub async fn status(&self, own: Status) -> MembersStatus {
        let own = MemberStatus { address: self.own_address.clone(), status: Some(own), error: None };
        let members = std::iter::once(own).chain(self.others().await).collect();
        MembersStatus { members }
    }

    async fn others(&self) -> Vec<MemberStatus> {
        let mut last = self.last.lock().await;
        if let Some((at, members)) = &*last
            && at.elapsed() < FRESH
        {
            return members.clone();
        }
        let members = self.membership.members();
        let others = members.iter().filter(|member| **member != self.own_address);
        let answers = join_all(others.map(|member| self.ask(member))).await;
        *last = Some((Instant::now(), answers.clone()));
        answers
    }

    async fn ask(&self, member: &str) -> MemberStatus {
        let (status, error) = match STATUS.ask(&self.http, member).await {
            Ok(status) => (Some(status), None),
            Err(why) => (None, Some(why)),
        };
        MemberStatus { address: member.to_owned(), status, error }
    }
}

/// What members are asked over HTTP, and answer with JSON.
pub(super) struct Question {
    pub path: &'static str,
    /// What its answer is.
    pub name: &'static str,
    /// The longest answer that is read, in bytes.
    pub max_bytes: usize,
    /// Of the client that asks.
    pub timeout: Duration,
}

impl Question {
    /// Asks a member.
    ///
    /// # Errors
    /// Why there is no answer, a sentence.
    pub async fn ask<T: DeserializeOwned>(&self, http: &MemberClient, member: &str) -> Result<T, String> {
        let Self { path, name, max_bytes, .. } = *self;
        let url = http.url(member, path).ok_or("it is registered under no address")?;
        let mut response = http.get(url).send().await.map_err(|error| self.sentence(&error))?;
        if !response.status().is_success() {
            return Err(format!("it answers {} to GET {path}", response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.sentence(&error))? {
            if body.len() + chunk.len() > max_bytes {
                return Err(format!("its {name} has more than {max_bytes} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|_| format!("what it answers to GET {path} is no {name}"))
    }

    fn sentence(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            format!("it does not answer within {} s", self.timeout.as_secs())
        } else if let Some(why) = tls_reason(error) {
            format!("TLS with it fails: {why}")
        } else if error.is_connect() {
            "it takes no connection from this node".to_owned()
        } else {
            "its answer ends early".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cluster::fixed::FixedMembership;

    /// A member that answers every request with these bytes, and how often it was asked.
    fn member(answer: &'static str) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let _ = stream.read(&mut [0; 4096]);
                count.fetch_add(1, Ordering::SeqCst);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    answer.len()
                );
                let _ = stream.write_all((head + answer).as_bytes());
            }
        });
        (address, asked)
    }

    fn members(others: &[&str]) -> Members {
        let all = others.iter().copied().chain(["own:1"]).map(str::to_owned).collect();
        let membership = Arc::new(FixedMembership::new(all, "own:1"));
        Members::new(&MemberClients::default(), membership, "own:1".to_owned()).expect("a client")
    }

    #[tokio::test]
    async fn each_says_what_it_is_or_there_is_a_reason() {
        let (good, _) = member(r#"{"node":"a:1","ready":true,"a later field":1}"#);
        let (bad, _) = member("<html>");
        // Bound and closed again: nobody listens there.
        let closed =
            TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").to_string();
        let members = members(&[&good, &bad, &closed, "no address"]);
        let answer = members.status(Status { node: "own:1".to_owned(), ..Status::default() }).await;
        let of = |address: &str| {
            let found = answer.members.iter().find(|member| member.address == address).expect("it is listed");
            (found.status.as_ref().map(|status| status.ready), found.error.clone().unwrap_or_default())
        };
        assert_eq!(answer.members[0].address, "own:1");
        assert_eq!(of(&good), (Some(true), String::new()));
        assert_eq!(of(&bad), (None, "what it answers to GET /status is no status".to_owned()));
        assert_eq!(of(&closed), (None, "it takes no connection from this node".to_owned()));
        assert_eq!(of("no address"), (None, "it is registered under no address".to_owned()));
        assert_eq!(answer.members.len(), 5);
    }

    #[tokio::test]
    async fn many_who_look_at_once_ask_each_member_once() {
        let (address, asked) = member(r#"{"node":"a:1"}"#);
        let members = members(&[&address]);
        join_all((0..50).map(|_| members.status(Status::default()))).await;
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}
