//! Runs the suites: starts servers when the first test needs them, and takes everything down whatever happens.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Completion, Conclusion, FormatSetting, Trial};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use crate::backends::{self, Backends, Server};
use crate::needs::Has;
pub use crate::needs::Needs;
use crate::process::{self, tail};
use crate::prometheus::{self, Prometheus};
use crate::proxy::Proxy;
use crate::{cluster, deployment};

/// No test may take longer, unless it says so; the longest takes half of it on two slow cores.
const TEST_DEADLINE: Duration = Duration::from_secs(300);
const LOG_LINES: usize = 30;
/// Bytes that a first run takes: the image's layers, containers, servers' and nodes' files, packages.
const ROOM: u64 = 6 << 30;

/// Runs on the thread that began it, so it need not be `Send`.
pub type Outcome = Pin<Box<dyn Future<Output = Result<()>>>>;

pub struct Test {
    /// `suite::guarantee`.
    name: String,
    needs: Needs,
    deadline: Duration,
    run: Box<dyn FnOnce(Ctx) -> Outcome + Send>,
}

impl Test {
    pub fn new<F, Fut>(module: &str, name: &str, needs: Needs, run: F) -> Test
    where
        F: FnOnce(Ctx) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        let suite = module.rsplit("::").next().unwrap_or(module);
        Test {
            name: format!("{suite}::{name}"),
            needs,
            deadline: TEST_DEADLINE,
            run: Box::new(|ctx| Box::pin(run(ctx))),
        }
    }

    /// For a test that goes on for as long as it is told to.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Test {
        Test { deadline, ..self }
    }
}

/// The tests of a suite: `tests![Servers: a_guarantee, another; Nothing: a_third]`.
#[macro_export]
macro_rules! tests {
    ($($needs:ident: $($test:ident),+ $(,)?);+ $(;)?) => {
        vec![$($(
            $crate::runner::Test::new(module_path!(), stringify!($test), $crate::runner::Needs::$needs, $test)
        ),+),+]
    };
}

struct Servers {
    kafka: Server,
    zookeeper: Server,
}

/// What all tests of a run share.
struct Run {
    backends: Backends,
    root: PathBuf,
    servers: OnceCell<Result<Servers, String>>,
    started: Mutex<BTreeSet<String>>,
    /// How long each test that has ended took, with what it waited for.
    took: Mutex<Vec<(Duration, String)>>,
}

impl Run {
    async fn servers(&self) -> Result<&Servers> {
        let start = async || {
            let (kafka_dir, zookeeper_dir) = (self.root.join("kafka"), self.root.join("zookeeper"));
            let (kafka, zookeeper, binary) = tokio::join!(
                self.backends.broker(&kafka_dir),
                self.backends.zookeeper(&zookeeper_dir),
                cluster::node_binary(),
            );
            binary?;
            anyhow::Ok(Servers { kafka: kafka?, zookeeper: zookeeper? })
        };
        // A failure is kept too: the tests after the first must not wait for it again.
        let servers = self.servers.get_or_init(async || start().await.map_err(|e| format!("{e:#}"))).await;
        servers.as_ref().map_err(|error| anyhow::anyhow!("the servers did not start: {error}"))
    }
}

/// What one test gets: addresses, a directory that is removed after it, and servers of its own on demand.
#[derive(Clone)]
pub struct Ctx {
    run: Arc<Run>,
    /// Every `*.log` in it is shown if the test fails.
    pub dir: PathBuf,
}

impl Ctx {
    /// The shared broker's address.
    pub async fn brokers(&self) -> Result<String> {
        Ok(self.run.servers().await?.kafka.address())
    }

    /// The shared ZooKeeper's address; take a chroot of your own.
    pub async fn zookeeper(&self) -> Result<String> {
        Ok(self.run.servers().await?.zookeeper.address())
    }

    /// A broker that only this test has, to stop and start.
    pub async fn own_broker(&self) -> Result<Server> {
        self.run.backends.broker(&self.dir.join("own-kafka")).await
    }

    /// Such a broker, and a proxy in front of it: who begins at the proxy's address meets the broker through it only.
    pub async fn own_broker_and_proxy(&self) -> Result<(Server, Proxy)> {
        self.run.backends.broker_and_proxy(&self.dir.join("own-kafka")).await
    }

    /// A Prometheus with the repository's rules over `targets`, `host:port` each.
    pub async fn prometheus(&self, targets: &[String]) -> Result<Prometheus> {
        Prometheus::start(self.run.backends, &self.dir, targets).await
    }

    /// Runs promtool on files below `monitoring/prometheus`.
    pub async fn promtool(&self, arguments: &[&str]) -> Result<String> {
        prometheus::promtool(self.run.backends, arguments).await
    }

    /// A broker of another cluster than every other, at a port that may be a former broker's.
    pub async fn another_broker(&self, port: u16) -> Result<Server> {
        self.run.backends.another_broker(&self.dir.join("another-kafka"), port).await
    }

    /// A ZooKeeper that only this test has, to stop and start.
    pub async fn own_zookeeper(&self) -> Result<Server> {
        self.run.backends.zookeeper(&self.dir.join("own-zookeeper")).await
    }
}

thread_local! {
    /// `Some` while a test runs on this thread: what it panicked with, and where.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn keep_panics_for_the_report() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let kept = PANIC.with_borrow_mut(|kept| match kept {
            Some(text) => {
                let at = info.location().map(ToString::to_string).unwrap_or_default();
                text.push_str(&format!("{at}: {}\n", payload(info.payload())));
                true
            }
            None => false,
        });
        if !kept {
            default(info);
        }
    }));
}

fn payload(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
}

fn run_test(runtime: &Runtime, run: &Arc<Run>, test: Test) -> Result<(), String> {
    let dir = run.root.join(test.name.replace("::", "-"));
    std::fs::create_dir_all(&dir).map_err(|error| format!("creating {}: {error}", dir.display()))?;
    run.started.lock().unwrap_or_else(PoisonError::into_inner).insert(test.name.clone());
    let ctx = Ctx { run: run.clone(), dir: dir.clone() };
    PANIC.set(Some(String::new()));
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            if test.needs.deployment() {
                deployment::build().await?;
            } else if test.needs.servers() {
                // Outside the deadline: the first test waits for a build and for servers.
                run.servers().await?;
            }
            let limited = tokio::time::timeout(test.deadline, (test.run)(ctx));
            limited.await.with_context(|| format!("it did not end within {:?}", test.deadline))?
        })
    }));
    let panicked = PANIC.take().unwrap_or_default();
    run.took.lock().unwrap_or_else(PoisonError::into_inner).push((began.elapsed(), test.name.clone()));
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some(panicked),
    };
    if let Some(text) = &failure {
        // At once: the report at the end is lost if this process is (a full disk under its own output, for one).
        eprintln!("e2e: {} failed: {}", test.name, in_brief(text));
    }
    let failure = failure.map(|text| format!("{text}\n{}", logs(&dir)));
    // E2E_KEEP is for looking into a failure; a directory that cannot be removed goes with the root.
    if std::env::var_os("E2E_KEEP").is_none() {
        let _ = std::fs::remove_dir_all(&dir);
    }
    failure.map_or(Ok(()), Err)
}

/// Its first line, which says what was being done, and its last, which is a command's own reason.
fn in_brief(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    lines.next_back().map_or_else(|| first.to_string(), |last| format!("{first} … {last}"))
}

/// The ends of all logs of a test.
fn logs(dir: &Path) -> String {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    let mut text = String::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().display().to_string();
        text.push_str(&format!("--- the last lines of {name}\n{}\n", tail(&file, LOG_LINES)));
    }
    text
}

/// The whole `main` of the test binary.
pub fn main(tests: Vec<Test>) -> ExitCode {
    main_with(Arguments::from_args(), tests)
}

/// The whole `main` of a benchmark: the same servers and the same end, one test at a time.
pub fn bench(tests: Vec<Test>) -> ExitCode {
    bench_with(std::env::args(), tests)
}

/// As [`bench()`], with other arguments than the process': the program's name, and what follows it.
pub fn bench_with(arguments: impl Iterator<Item = String>, tests: Vec<Test>) -> ExitCode {
    let arguments = Arguments::from_iter(arguments);
    backends::run_brokers_as_deployed();
    // `cargo bench` asks for benchmarks only; these are tests to libtest-mimic.
    main_with(Arguments { bench: false, test_threads: Some(1), ..arguments }, tests)
}

fn main_with(mut arguments: Arguments, tests: Vec<Test>) -> ExitCode {
    // Two clusters of three nodes are what a machine with two cores carries.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    if arguments.list {
        let trials = tests.into_iter().map(|test| Trial::test(test.name, || Ok(()))).collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    keep_panics_for_the_report();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime can be built");
    match runtime.block_on(prepare()) {
        Ok(run) => supervise(&arguments, runtime, run, tests),
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn prepare() -> Result<Run> {
    let backends = Backends::choose().await?;
    backends::reap_orphans(backends).await;
    let root =
        tempfile::Builder::new().prefix("bitacora-e2e-").tempdir().context("a directory for the run")?;
    let root = root.keep();
    tokio::spawn(end_on_signal(backends, root.clone()));
    Ok(Run { backends, root, servers: OnceCell::new(), started: Mutex::default(), took: Mutex::default() })
}

/// Names the places of this run that have little room left: on a full disk everything fails, each with another reason.
async fn little_room(backends: Backends, root: &Path) -> Option<String> {
    let mut places = vec![root.to_path_buf(), PathBuf::from(env!("CARGO_MANIFEST_DIR"))];
    if backends == Backends::Docker
        && let Ok(docker) = deployment::docker(&["info", "--format", "{{.DockerRootDir}}"]).await
    {
        places.push(PathBuf::from(docker.trim()));
    }
    let short: Vec<String> = places
        .iter()
        // An engine elsewhere has its directory elsewhere.
        .filter_map(|place| Some((place, rustix::fs::statvfs(place).ok()?)))
        .map(|(place, disk)| (place, disk.f_bavail * disk.f_frsize))
        .filter(|(_, free)| *free < ROOM)
        .map(|(place, free)| format!("{} MiB at {}", free >> 20, place.display()))
        .collect();
    (!short.is_empty()).then(|| {
        format!("little room: {}; a run takes up to {} MiB, so make some", short.join(", "), ROOM >> 20)
    })
}

fn supervise(arguments: &Arguments, runtime: Runtime, run: Run, tests: Vec<Test>) -> ExitCode {
    let runtime = Arc::new(runtime);
    let backends = run.backends;
    let root = run.root.clone();
    let run = Arc::new(run);
    let has = runtime.block_on(Has::look(backends));
    let tell_of_little_room = || {
        if let Some(text) = runtime.block_on(little_room(backends, &root)) {
            eprintln!("e2e: {text}");
        }
    };
    tell_of_little_room();
    let registered = tests.len();
    let needs_engine = |needs: Needs| needs.servers() || needs.deployment();
    let needing = tests.iter().filter(|test| needs_engine(test.needs)).count();
    let trials = tests.into_iter().map(|test| trial(&runtime, &run, has, test));
    let conclusion = libtest_mimic::run(arguments, trials.collect());
    if conclusion.has_failed() {
        tell_of_little_room();
    }

    let started = run.started.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let took = std::mem::take(&mut *run.took.lock().unwrap_or_else(PoisonError::into_inner));
    runtime.block_on(tear_down(run, backends));
    remove_root(&root);

    let ran = (conclusion.num_passed + conclusion.num_failed) as usize;
    if let Some(line) = longest(took) {
        eprintln!("{line}");
    }
    tell_what_ran(arguments, &last_line(backends, &started, ran, registered - needing));
    for line in has.tell_what_is_missing() {
        println!("e2e: {line}");
    }
    let all_must_run = backends != Backends::None && has.everything();
    if started.len() != ran || !all_accounted_for(arguments, &conclusion, registered, all_must_run) {
        eprintln!(
            "e2e: {registered} tests are registered, {} began, {ran} ended: some are lost",
            started.len()
        );
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn trial(runtime: &Arc<Runtime>, run: &Arc<Run>, has: Has, test: Test) -> Trial {
    let name = test.name.clone();
    let (runtime, run) = (runtime.clone(), run.clone());
    Trial::ignorable_test(name, move || {
        if let Some(missing) = has.missing(test.needs) {
            return Ok(Completion::ignored_with(missing));
        }
        run_test(&runtime, &run, test)?;
        Ok(Completion::Completed)
    })
}

/// Which tests a run that took too long should be asked about.
fn longest(mut took: Vec<(Duration, String)>) -> Option<String> {
    const NAMED: usize = 10;
    if took.len() <= NAMED {
        return None;
    }
    took.sort_unstable();
    let named = took.iter().rev().take(NAMED).map(|(took, name)| format!("{name} {} s", took.as_secs()));
    Some(format!("e2e: took longest: {}", named.collect::<Vec<_>>().join(", ")))
}

/// What a run says of itself at its end. `without_servers`: tests that need none.
fn last_line(backends: Backends, started: &BTreeSet<String>, ran: usize, without_servers: usize) -> String {
    if backends == Backends::None {
        return format!(
            "e2e: NOT RUN: neither a Docker engine nor Java with Maven was found; only the {without_servers} tests \
             that need neither ran"
        );
    }
    let suites: BTreeSet<&str> = started.iter().filter_map(|name| name.split("::").next()).collect();
    format!("e2e: {} suites ({ran} tests) ran on: {}", suites.len(), backends.describe())
}

fn tell_what_ran(arguments: &Arguments, line: &str) {
    if let Some(file) = std::env::var_os("E2E_SUMMARY")
        && let Err(error) = std::fs::write(&file, format!("{line}\n"))
    {
        eprintln!("e2e: {} can't be written: {error}", Path::new(&file).display());
    }
    // Machine formats own stdout.
    match arguments.format {
        None | Some(FormatSetting::Pretty | FormatSetting::Terse) => println!("{line}"),
        Some(_) => eprintln!("{line}"),
    }
}

/// Whether a run of everything has an end of every test, and one that was not left out if `all_must_run`.
fn all_accounted_for(
    arguments: &Arguments,
    conclusion: &Conclusion,
    registered: usize,
    all_must_run: bool,
) -> bool {
    let everything = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.ignored;
    let ran = (conclusion.num_passed + conclusion.num_failed) as usize;
    let left_out = conclusion.num_ignored as usize;
    !everything || (ran + left_out == registered && (left_out == 0 || !all_must_run))
}

async fn tear_down(run: Arc<Run>, backends: Backends) {
    if let Some(Ok(servers)) = Arc::into_inner(run).and_then(|run| run.servers.into_inner()) {
        for server in [servers.kafka, servers.zookeeper] {
            if let Err(error) = server.remove().await {
                eprintln!("e2e: {error:#}");
            }
        }
    }
    // What a test may have leaked.
    process::kill_all();
    backends::remove_ours(backends).await;
}

fn remove_root(root: &Path) {
    if std::env::var_os("E2E_KEEP").is_some() {
        eprintln!("e2e: kept {}", root.display());
    } else if let Err(error) = std::fs::remove_dir_all(root) {
        eprintln!("e2e: {} is left: {error}", root.display());
    }
}

/// On SIGINT or SIGTERM nothing is dropped, so this takes everything down itself.
async fn end_on_signal(backends: Backends, root: PathBuf) {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be listened to");
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be listened to");
    let code = tokio::select! {
        _ = interrupt.recv() => 130,
        _ = terminate.recv() => 143,
    };
    eprintln!("e2e: interrupted, taking everything down");
    process::kill_all();
    backends::remove_ours(backends).await;
    // A container that was being started meanwhile carries the label too.
    backends::remove_ours(backends).await;
    remove_root(&root);
    std::process::exit(code);
}
