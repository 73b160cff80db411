//! Logging in to Kafka by tokens (SASL OAUTHBEARER). A thread gets them from a token endpoint and gives each to all clients of
//! librdkafka at once, which show it when they connect, and when a broker wants to know again who they are.

mod endpoint;
mod properties;
mod token;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use parking_lot::Mutex;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use slab::Slab;

pub use self::endpoint::TokenEndpoint;
use self::token::Token;
use super::client::LastProblem;
use super::events;
use crate::worker::Worker;

/// The pause after the first failure, and the longest one; chance makes each up to twice as long.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How old a token is at least that is replaced since a broker refused it: what is wrong may have been mended where tokens are made.
const RETRY_REFUSED: Duration = Duration::from_secs(20);
/// How often the thread looks at the clocks: one of them stands still while the machine sleeps.
const LOOK: Duration = Duration::from_secs(10);
/// How long the end of the log waits for the thread, which may be asking.
const END: Duration = Duration::from_secs(1);

/// The thread that gets tokens; it ends when this is dropped.
pub(super) struct Login {
    tokens: Tokens,
    thread: Mutex<Option<Worker>>,
}

impl Login {
    /// Begins to ask for tokens.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(endpoint: TokenEndpoint) -> std::io::Result<Self> {
        let problem = format!("no token has come yet from {}", endpoint.shown());
        let state = State { token: None, problem, clients: Slab::new() };
        let shared = Shared {
            endpoint,
            state: Mutex::new(state),
            refused: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        };
        let tokens = Tokens(Arc::new(shared));
        let of_thread = tokens.clone();
        let thread = Worker::spawn("kafka-login", move || of_thread.keep_fresh())?;
        Ok(Self { tokens, thread: Mutex::new(Some(thread)) })
    }

    pub fn tokens(&self) -> Tokens {
        self.tokens.clone()
    }

    /// The name of the thread if it has ended.
    pub fn ended_thread(&self) -> Option<&'static str> {
        self.thread.lock().as_ref().and_then(Worker::ended)
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        self.tokens.0.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.get_mut().take() else { return };
        thread.unpark();
        if let Err(name) = thread.join_until(Instant::now() + END) {
            tracing::debug!("the thread '{name}' waits for an answer, and ends after that");
        }
    }
}

/// The tokens, for whoever makes a client. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tokens(Arc<Shared>);

struct Shared {
    endpoint: TokenEndpoint,
    state: Mutex<State>,
    /// A broker did not take the token.
    refused: AtomicBool,
    stop: AtomicBool,
}

struct State {
    /// The last one, also when it has run out.
    token: Option<Token>,
    /// Why there is no newer one; empty if that is as it should be.
    problem: String,
    clients: Slab<Arc<dyn TakesTokens>>,
}

/// A client of librdkafka.
pub(super) trait TakesTokens: Send + Sync {
    /// # Errors
    /// In librdkafka's words.
    fn take(&self, token: &Token, endpoint: &TokenEndpoint) -> Result<(), String>;
}

impl TakesTokens for BaseConsumer<LastProblem> {
    fn take(&self, token: &Token, endpoint: &TokenEndpoint) -> Result<(), String> {
        set(self.client(), token, endpoint)
    }
}

impl<C: ProducerContext + 'static> TakesTokens for BaseProducer<C> {
    fn take(&self, token: &Token, endpoint: &TokenEndpoint) -> Result<(), String> {
        set(self.client(), token, endpoint)
    }
}

fn set<C: ClientContext>(client: &Client<C>, token: &Token, endpoint: &TokenEndpoint) -> Result<(), String> {
    events::set_token(client, &token.value, &endpoint.principal, &endpoint.extensions)
}

/// While this is kept, the client is given each new token.
pub(super) struct Supplied {
    tokens: Tokens,
    place: usize,
}

impl Drop for Supplied {
    fn drop(&mut self) {
        // Dropped after the lock is free, if it is the last of the client.
        let _client = self.tokens.0.state.lock().clients.try_remove(self.place);
    }
}

impl Tokens {
    /// Gives the client the token that is there, and each that comes later.
    pub fn supply(&self, client: Arc<dyn TakesTokens>) -> Supplied {
        let mut state = self.0.state.lock();
        if let Some(token) = &state.token {
            self.give(token, &*client);
        }
        let place = state.clients.insert(client);
        Supplied { tokens: self.clone(), place }
    }

    /// Gives the token that is there to a client that does not live for long.
    pub fn supply_once<C: ClientContext>(&self, client: &Client<C>) {
        if let Some(token) = &self.0.state.lock().token
            && let Err(error) = set(client, token, &self.0.endpoint)
        {
            tracing::error!(%error, "librdkafka refuses a token");
        }
    }

    fn give(&self, token: &Token, client: &dyn TakesTokens) {
        if let Err(error) = client.take(token, &self.0.endpoint) {
            tracing::error!(%error, "librdkafka refuses a token");
        }
    }

    /// Why no broker can be logged in to, if that is for want of a token.
    pub fn problem(&self) -> Option<String> {
        let state = self.0.state.lock();
        let alive = state.token.as_ref().is_some_and(Token::is_alive);
        (!alive && !state.problem.is_empty()).then(|| state.problem.clone())
    }

    /// Notes that a broker did not let a client in. Waits for nothing.
    pub fn note_refusal(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }

    /// What helps to find out why brokers refuse the token: they say little of it.
    pub fn refusal(&self) -> String {
        let state = self.0.state.lock();
        let says = state.token.as_ref().and_then(|token| token.says.as_deref());
        format!(
            "the brokers refuse the token of {}; compare what it says with their sasl.oauthbearer.expected.audience, \
             sasl.oauthbearer.expected.issuer and keys: {}",
            self.0.endpoint.shown(),
            says.unwrap_or("it says nothing of itself, as it is no JWT")
        )
    }

    /// Gets tokens until the end.
    fn keep_fresh(&self) {
        let Shared { endpoint, stop, .. } = &*self.0;
        let pauses = || {
            let pauses =
                ExponentialBuilder::new().with_min_delay(SHORTEST_PAUSE).with_max_delay(LONGEST_PAUSE);
            pauses.without_max_times().with_jitter().build()
        };
        let mut pause = pauses();
        while !stop.load(Ordering::Relaxed) {
            let fetched = endpoint.fetch();
            let failed = fetched.is_err();
            self.note(fetched);
            if !failed {
                pause = pauses();
                self.wait_for_renewal();
                continue;
            }
            let until = Instant::now() + pause.next().unwrap_or(LONGEST_PAUSE);
            while !stop.load(Ordering::Relaxed) && Instant::now() < until {
                std::thread::park_timeout(until.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// Keeps what was got, and tells it when it is news.
    fn note(&self, fetched: Result<Token, String>) {
        let mut state = self.0.state.lock();
        match fetched {
            Ok(token) => {
                let from = self.0.endpoint.shown();
                match (&state.token, state.problem.is_empty()) {
                    (None, _) => tracing::info!(
                        "logs in to Kafka with tokens of {from}, the first one for {:?}",
                        token.life
                    ),
                    (Some(_), false) => tracing::info!("there are tokens again, from {from}"),
                    (Some(_), true) => tracing::debug!("another token of {from}, for {:?}", token.life),
                }
                state.problem.clear();
                for (_, client) in &state.clients {
                    self.give(&token, &**client);
                }
                state.token = Some(token);
            }
            Err(problem) if problem == state.problem => {}
            Err(problem) => {
                let alive = state.token.as_ref().is_some_and(Token::is_alive);
                let until = if alive { "; the last token is good for some time still" } else { "" };
                tracing::warn!("there is no new token for Kafka: {problem}{until}");
                state.problem = problem;
            }
        }
    }

    /// Waits until the token should be replaced.
    fn wait_for_renewal(&self) {
        let Shared { state, refused, stop, .. } = &*self.0;
        refused.store(false, Ordering::Relaxed);
        while !stop.load(Ordering::Relaxed) {
            let left = state.lock().token.as_ref().map(|token| (token.renewal_in(), token.age()));
            let Some((left, age)) = left else { return };
            if left.is_zero() || refused.load(Ordering::Relaxed) && age >= RETRY_REFUSED {
                return;
            }
            std::thread::park_timeout(left.min(LOOK));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{self, Sender};

    use super::endpoint::tests::endpoint;
    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    /// Tells which tokens it was given.
    struct Client(Mutex<Sender<String>>);

    impl TakesTokens for Client {
        fn take(&self, token: &Token, _: &TokenEndpoint) -> Result<(), String> {
            let _ = self.0.lock().send(token.value.to_string_lossy().into_owned());
            Ok(())
        }
    }

    /// Answers each question on a connection of its own, until nothing comes of `answers` any more.
    fn answer(listener: &TcpListener, mut answers: impl Iterator<Item = String>) {
        while let Ok((mut stream, _)) = listener.accept() {
            let Some(answer) = answers.next() else { return };
            let _ = stream.read(&mut [0; 4_096]);
            let length = answer.len();
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ";
            let _ = write!(stream, "{head}{length}\r\n\r\n{answer}");
        }
    }

    #[test]
    fn each_client_is_given_each_token_until_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (enough, ends) = mpsc::channel::<()>();
        let server = std::thread::spawn(move || {
            // The last one lives for long.
            let life = |number| if number < 3 { 1 } else { 3_600 };
            let token =
                |number| format!(r#"{{"access_token":"token-{number}","expires_in":{}}}"#, life(number));
            answer(&listener, (1..).map(token).take_while(|_| ends.try_recv().is_err()));
        });
        let login = Login::start(endpoint(address.port())).expect("a thread");
        let (first, taken_first) = mpsc::channel();
        let supplied = login.tokens().supply(Arc::new(Client(Mutex::new(first))));
        for number in 1..=3 {
            assert_eq!(taken_first.recv_timeout(SOON), Ok(format!("token-{number}")));
        }
        assert_eq!(login.tokens().problem(), None);
        // One that comes later has the last one at once.
        let (second, taken_second) = mpsc::channel();
        let _supplied = login.tokens().supply(Arc::new(Client(Mutex::new(second))));
        assert_eq!(taken_second.try_recv(), Ok("token-3".to_owned()));
        // One that has gone is given nothing, and is not kept.
        drop(supplied);
        assert_eq!(taken_first.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        assert_eq!(login.ended_thread(), None);
        login.tokens.0.stop.store(true, Ordering::Relaxed);
        while login.ended_thread().is_none() {
            login.thread.lock().as_ref().expect("a thread").unpark();
            std::thread::yield_now();
        }
        assert_eq!(login.ended_thread(), Some("kafka-login"));
        enough.send(()).expect("it waits");
        let _ = TcpStream::connect(address);
        server.join().expect("it ended");
    }

    #[test]
    fn why_there_is_no_token_is_known_until_there_is_one() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let login = Login::start(endpoint(address.port())).expect("a thread");
        let tokens = login.tokens();
        let said = |what: &str| {
            while !tokens.problem().is_some_and(|it| it.contains(what)) {
                std::thread::yield_now();
            }
        };
        said("does not answer");
        let (client, taken) = mpsc::channel();
        let _supplied = tokens.supply(Arc::new(Client(Mutex::new(client))));
        let listener = TcpListener::bind(address).expect("the same port");
        let server = std::thread::spawn(move || {
            let answers = ["[]".to_owned(), r#"{"access_token":"t","expires_in":60}"#.to_owned()];
            answer(&listener, answers.into_iter());
        });
        said("'access_token'");
        assert_eq!(taken.recv_timeout(SOON), Ok("t".to_owned()));
        // The lock is free once all clients have it.
        assert_eq!(tokens.problem(), None);
        drop(login);
        let _ = TcpStream::connect(address);
        server.join().expect("it ended");
    }
}
