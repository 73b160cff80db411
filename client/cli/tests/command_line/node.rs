//! A node as far as the command line needs one: a map behind just enough HTTP/1.1, and faults on demand.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_millis() as i64
}

pub struct FakeNode {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    healed: Condvar,
    left: Condvar,
}

#[derive(Default)]
struct State {
    records: BTreeMap<String, (String, i64)>,
    /// The offset of each key that was set by a request.
    versions: HashMap<String, i64>,
    /// That writes of each key had in a batch.
    uuids: HashMap<String, HashSet<String>>,
    /// What was asked for beside the key: parameters and headers.
    asked: Vec<String>,
    /// Every value that was set, in order.
    history: HashMap<String, Vec<String>>,
    offset: i64,
    sets: u64,
    members: Vec<String>,
    /// So many requests are answered with 503.
    fail: u64,
    /// Requests that are still answered before all others get 503, or no answer.
    break_after: Option<u64>,
    hang_after: Option<u64>,
    hanging: usize,
    /// Keys whose next write in a batch fails.
    flaky: HashSet<String>,
    flaky_often: bool,
    /// Connections that are served.
    clients: usize,
}

struct Asked {
    method: String,
    path: String,
    query: HashMap<String, String>,
    /// Those of conditions.
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl FakeNode {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let client = Client::new(Arc::clone(&serving));
                std::thread::spawn(move || serve(&stream, &client.0, address));
            }
        });
        Self { address, shared }
    }

    /// With so many records: `k0000` and on, with these values.
    pub fn holding(count: usize, value: impl Fn(usize) -> String) -> Self {
        let node = Self::start();
        (0..count).for_each(|n| node.set(&format!("k{n:04}"), &value(n)));
        node
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no thread panicked")
    }

    pub fn name(&self) -> String {
        self.address.to_string()
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn set(&self, key: &str, value: &str) {
        self.set_until(key, value, 0);
    }

    pub fn set_until(&self, key: &str, value: &str, ttl: i64) {
        self.state().records.insert(key.into(), (value.into(), ttl));
    }

    pub fn value(&self, key: &str) -> Option<String> {
        self.state().records.get(key).map(|(value, _)| value.clone())
    }

    pub fn ttl(&self, key: &str) -> Option<i64> {
        self.state().records.get(key).map(|(_, ttl)| *ttl)
    }

    /// Of a key whose values are growing numbers.
    pub fn never_went_back(&self, key: &str) -> bool {
        self.state().history[key].is_sorted_by_key(|value| value.parse::<u64>().expect("a number"))
    }

    /// That writes of a key had in batches.
    pub fn uuids(&self, key: &str) -> HashSet<String> {
        self.state().uuids.get(key).cloned().unwrap_or_default()
    }

    /// What the last request, or line of a batch, asked for beside its key, in order.
    pub fn last_asked(&self) -> String {
        self.state().asked.last().cloned().unwrap_or_default()
    }

    pub fn clear(&self) {
        self.state().records.clear();
    }

    pub fn sets(&self) -> u64 {
        self.state().sets
    }

    pub fn members(&self, others: &[&str]) {
        self.state().members = others.iter().map(ToString::to_string).collect();
    }

    pub fn fail(&self, requests: u64) {
        self.state().fail = requests;
    }

    pub fn break_after(&self, requests: u64) {
        self.wait_until_alone();
        self.state().break_after = Some(requests);
    }

    /// Waits until all that clients have sent before they ended is answered or dropped: a write of theirs is not to be taken for
    /// one of the next run.
    fn wait_until_alone(&self) {
        // Connections are accepted in turn: when this one ends, every earlier one is counted.
        let mut last = TcpStream::connect(self.address).expect("it listens");
        last.shutdown(Shutdown::Write).expect("it is open");
        assert_eq!(last.read(&mut [0]).expect("it ends"), 0);
        let (alone, _) = self
            .shared
            .left
            .wait_timeout_while(self.state(), Duration::from_secs(30), |state| state.clients > 0)
            .expect("no thread panicked");
        assert_eq!(alone.clients, 0, "clients are still there");
    }

    pub fn hang(&self, hang: bool) {
        self.hang_after(if hang { 0 } else { u64::MAX });
    }

    pub fn hang_after(&self, requests: u64) {
        self.state().hang_after = Some(requests);
        self.shared.healed.notify_all();
    }

    pub fn hanging(&self) -> usize {
        self.state().hanging
    }

    pub fn flaky(&self, key: &str) {
        self.state().flaky.insert(key.into());
    }

    /// Every third write in a batch fails.
    pub fn flaky_often(&self) {
        self.state().flaky_often = true;
    }
}

/// Counts a connection while it is served.
struct Client(Arc<Shared>);

impl Client {
    fn new(shared: Arc<Shared>) -> Self {
        shared.state.lock().expect("no thread panicked").clients += 1;
        Self(shared)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.state.lock().expect("no thread panicked").clients -= 1;
        self.0.left.notify_all();
    }
}

fn serve(stream: &TcpStream, shared: &Shared, address: SocketAddr) {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(asked) = read(&mut reader) {
        let (status, headers, body) = {
            let mut state = shared.state.lock().expect("no thread panicked");
            if spent(&mut state.hang_after) {
                state.hanging += 1;
                let waited = shared.healed.wait_while(state, |state| state.hang_after == Some(0));
                waited.expect("no thread panicked").hanging -= 1;
                return;
            }
            if state.fail > 0 || spent(&mut state.break_after) {
                state.fail = state.fail.saturating_sub(1);
                (503, String::new(), json!({"message": "not now"}).to_string())
            } else {
                state.answer(&asked, address)
            }
        };
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        if writer.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

/// Whether the requests that may still be answered are used up; counts this one.
fn spent(left: &mut Option<u64>) -> bool {
    match left {
        Some(0) => true,
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

fn read(reader: &mut BufReader<&TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let (method, rest) = line.split_once(' ')?;
    let (method, target) = (method.to_owned(), rest.split(' ').next()?.to_owned());
    let (mut length, mut headers) = (0, BTreeMap::new());
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().ok()?,
            Some((name @ ("if-match" | "if-none-match" | "idempotency-key"), value)) => {
                headers.insert(name.to_owned(), value.to_owned());
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = pairs.map(|(name, value)| (decode(name), decode(value))).collect();
    Some(Asked { method, path: path.to_owned(), query, headers, body })
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.expect("two digits")));
                u8::from_str_radix(&digits.iter().collect::<String>(), 16).expect("hexadecimal")
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).expect("UTF-8")
}

type Answer = (u16, String, String);

impl State {
    fn answer(&mut self, asked: &Asked, address: SocketAddr) -> Answer {
        let query = |name: &str| asked.query.get(name).cloned().unwrap_or_default();
        let plain = |status, body: Value| (status, String::new(), body.to_string());
        let options = ["consistency", "position", "max_staleness", "visible", "timeout"];
        let parameters =
            options.into_iter().filter_map(|name| Some((name.to_owned(), asked.query.get(name)?)));
        let headers = asked.headers.iter().map(|(name, value)| (name.clone(), value));
        let told: Vec<_> = parameters.chain(headers).map(|(name, value)| format!("{name}={value}")).collect();
        self.asked.push(told.join(" "));
        if asked.path == "/rpc" && !self.holds(&query("key"), &asked.headers) {
            let version = self.versions.get(&query("key")).copied().unwrap_or(-1);
            let body = json!({"message": format!("the version of the key is 0:{version}"), "current": null});
            return (412, format!("Bitacora-Position: 0:{version}\r\n"), body.to_string());
        }
        match (asked.method.as_str(), asked.path.as_str()) {
            ("GET", "/rpc") => single(self.get(&query("key"))),
            ("POST", "/rpc") => {
                let value = String::from_utf8(asked.body.clone()).expect("UTF-8");
                single(self.set(&query("key"), value, ttl_in_ms(&query("ttl"))))
            }
            ("DELETE", "/rpc") => single(self.delete(&query("key"))),
            ("POST", "/rpc/batch") => {
                let lines = asked.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                let lines: Vec<_> = lines.map(|line| self.line(line)).collect();
                (200, String::new(), lines.concat())
            }
            ("GET", "/rpc/scan") => plain(200, self.scan(&query)),
            ("GET", "/status") => plain(200, self.status(address)),
            _ => plain(404, json!({"message": "no such path"})),
        }
    }

    /// Whether the condition of a write holds, if it has one.
    fn holds(&self, key: &str, headers: &BTreeMap<String, String>) -> bool {
        let live = self.records.contains_key(key);
        let version = self.versions.get(key).map(|offset| format!("\"0:{offset}\""));
        match (headers.get("if-match"), headers.get("if-none-match")) {
            (Some(any), _) if any == "*" => live,
            (Some(one), _) => live && version.as_ref() == Some(one),
            (None, Some(_)) => !live,
            (None, None) => true,
        }
    }

    /// The single call's body, with what the answer's headers say in `status`, `position` and `from`.
    fn get(&self, key: &str) -> Value {
        match self.records.get(key) {
            Some((value, ttl)) => {
                json!({"key": key, "value": value, "timestamp": 1, "source": 1, "ttl": ttl, "uuid": "u", "status": 200, "position": "0:1", "from": "store"})
            }
            None => json!({"message": format!("Key {key} not found"), "status": 404, "position": "0:1"}),
        }
    }

    fn set(&mut self, key: &str, value: String, ttl: Option<i64>) -> Value {
        if key.starts_with("bad") {
            return json!({"message": format!("{key} is refused"), "status": 400});
        }
        self.sets += 1;
        let often = self.flaky_often && self.sets.is_multiple_of(3);
        if self.flaky.remove(key) || often {
            return json!({"message": "it may still take effect", "status": 503});
        }
        let ttl = ttl.map_or(0, |ttl| now_ms() + ttl);
        self.offset += 1;
        self.versions.insert(key.into(), self.offset);
        self.history.entry(key.into()).or_default().push(value.clone());
        let answer = json!({"key": key, "value": value, "timestamp": 1, "source": 3, "ttl": ttl, "uuid": "u", "status": 200, "position": format!("0:{}", self.offset)});
        self.records.insert(key.into(), (value, ttl));
        answer
    }

    fn delete(&mut self, key: &str) -> Value {
        if key.trim().is_empty() {
            return json!({"message": "the key is missing or blank", "status": 400});
        }
        self.offset += 1;
        self.records.remove(key);
        json!({"key": key, "value": "", "timestamp": 1, "source": 3, "ttl": -1, "uuid": "u", "status": 200, "position": format!("0:{}", self.offset)})
    }

    /// A line of a batch, and its answer; a write's lacks the value.
    fn line(&mut self, line: &[u8]) -> String {
        let line: Value = serde_json::from_slice(line).expect("the program sends JSON");
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let mut conditions = BTreeMap::new();
        if let Some(version) = line["ifMatch"].as_str() {
            let quoted = if version == "*" { version.to_owned() } else { format!("\"{version}\"") };
            conditions.insert("if-match".to_owned(), quoted);
        }
        if line["ifAbsent"] == true {
            conditions.insert("if-none-match".to_owned(), "*".to_owned());
        }
        let named = conditions.iter().map(|(name, value)| format!("{name}={value}"));
        let visible = line["visible"].as_str().map(|visible| format!("visible={visible}"));
        let uuid = line["uuid"].as_str().map(|uuid| {
            self.uuids.entry(text("key")).or_default().insert(uuid.to_owned());
            "uuid".to_owned()
        });
        self.asked.push(named.chain(visible).chain(uuid).collect::<Vec<_>>().join(" "));
        if !self.holds(&text("key"), &conditions) {
            let version = self.versions.get(&text("key")).copied().unwrap_or(-1);
            let message = format!("the version of the key is 0:{version}");
            return json!({"message": message, "current": null, "status": 412, "position": format!("0:{version}")})
                .to_string()
                + "\n";
        }
        let mut answer = match line["op"].as_str() {
            Some("get") => return self.get(&text("key")).to_string() + "\n",
            Some("set") => {
                self.set(&text("key"), text("value"), ttl_in_ms(line["ttl"].as_str().unwrap_or_default()))
            }
            Some("delete") => self.delete(&text("key")),
            _ => panic!("no operation: {line}"),
        };
        answer.as_object_mut().expect("an object").remove("value");
        answer.to_string() + "\n"
    }

    fn scan(&self, query: &impl Fn(&str) -> String) -> Value {
        let (prefix, start, end, cursor) = (query("prefix"), query("start"), query("end"), query("cursor"));
        let limit = query("limit").parse().expect("a limit");
        let keys = self.records.keys().filter(|key| {
            key.starts_with(&prefix) && **key >= start && (end.is_empty() || **key < end) && **key > cursor
        });
        let keys: Vec<_> = keys.take(limit).collect();
        let records: Vec<_> = keys.iter().map(|key| self.get(key)).collect();
        let cursor = (keys.len() == limit).then(|| keys.last());
        json!({"records": records, "cursor": cursor.flatten()})
    }

    fn status(&self, address: SocketAddr) -> Value {
        let members: Vec<_> = self.members.iter().cloned().chain([address.to_string()]).collect();
        json!({
            "node": address.to_string(), "version": "0.1.0", "ready": true, "caught_up": true, "members": members,
            "membership": {"state": "fixed"}, "log": {"state": "reading"}, "anything": {"else": 1},
            "partitions": [{"partition": 0, "applied": 6, "high_watermark": 10, "lag": 3, "high_watermark_age_ms": 5}],
            "restore": {"done": true, "seconds": 0.1, "fraction": 1.0},
            "store": {"records": 7, "bytes": 4096}, "cache": {"records": 1, "bytes": 100},
        })
    }
}

/// An answer of a single call: some of it goes into headers.
fn single(mut body: Value) -> Answer {
    let fields = body.as_object_mut().expect("an object");
    let status = fields.remove("status").and_then(|status| status.as_u64()).expect("a status");
    let headers = [("position", "Bitacora-Position"), ("from", "Bitacora-Source")].map(|(field, header)| {
        let value = fields.remove(field);
        value.map(|value| format!("{header}: {}\r\n", value.as_str().expect("text"))).unwrap_or_default()
    });
    (status as u16, headers.concat(), body.to_string())
}

/// As a node takes it: with its unit, or not at all.
fn ttl_in_ms(text: &str) -> Option<i64> {
    let ttl = (!text.is_empty()).then(|| bitacora_protocol::units::positive_duration(text));
    ttl.map(|ttl| i64::try_from(ttl.expect("a time with its unit").as_millis()).expect("not that long"))
}
