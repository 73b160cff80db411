//! What a signal does to a node.

use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::program::{Program, command, output, stderr};

fn dev(data: &std::path::Path, more: impl FnOnce(&mut Command)) -> Program {
    let mut node = Program::dev(1, data, |it| {
        it.env("LOG_LEVEL", "info").stderr(Stdio::piped());
        more(it);
    });
    node.answers("/health/ready", 200);
    node
}

/// It ends in order: the last step of a stop is told, and the exit code is 0.
fn stopped_in_order(mut node: Program) {
    let status = node.ended();
    let said = node.said();
    assert_eq!(status.code(), Some(0), "{status}: {said}");
    assert!(said.contains("stopping: done"), "{said}");
}

#[test]
fn a_stop_signal_is_an_orderly_stop() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let data = tempfile::tempdir().expect("a folder");
        let node = dev(data.path(), |_| ());
        node.signal(signal);
        stopped_in_order(node);
    }
}

/// An init system may send it along with SIGTERM.
#[test]
fn a_hangup_during_a_stop_does_not_cut_it_short() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = dev(data.path(), |it| {
        it.env("DRAIN_DELAY", "1s");
    });
    node.signal(Signal::TERM);
    node.answers("/health/ready", 503);
    node.signal(Signal::HUP);
    stopped_in_order(node);
}

/// Such as that of a window that is closed. The system then sends SIGHUP.
#[test]
fn a_closed_terminal_is_an_orderly_stop() {
    let data = tempfile::tempdir().expect("a folder");
    let log = data.path().join("node.log");
    let port = super::program::ports(2);
    // `script` gives a terminal to what it runs; with its end the terminal is closed.
    let mut terminal = Command::new("script");
    let node = r#"exec "$NODE" dev --nodes 1 --port "$FIRST_PORT" --data-dir "$DATA" 2>>"$LOG""#;
    terminal.args(["--quiet", "--command", node, "/dev/null"]);
    terminal.env("NODE", env!("CARGO_BIN_EXE_bitacora-node")).env("FIRST_PORT", port.to_string());
    terminal.env("DATA", data.path().join("data")).env("LOG", &log).env("LOG_LEVEL", "info");
    terminal.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut terminal = Program::run(terminal, port);
    terminal.answers("/health/ready", 200);
    terminal.signal(Signal::KILL);
    terminal.ended();
    super::program::wait_until("the node has stopped in order", || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        if said.contains("the terminal was closed") && said.contains("stopping: done") {
            Ok(())
        } else {
            Err(said)
        }
    });
}

#[test]
fn a_hangup_takes_over_changed_settings() {
    let data = tempfile::tempdir().expect("a folder");
    let (file, log) = (data.path().join("live"), data.path().join("node.log"));
    std::fs::write(&file, "MAX_CONNECTIONS=11\nLOG_LEVEL=error\n").expect("written");
    let errors = std::fs::File::create(&log).expect("a file");
    let mut node = Program::dev(1, &data.path().join("data"), |it| {
        it.env("LIVE_SETTINGS_FILE", &file).env("LOG_LEVEL", "warn").env("MAX_WATCHERS", "5").stderr(errors);
    });
    node.answers("/health/ready", 200);
    let limits = |node: &Program| {
        ["bitacora_connections_limit", "bitacora_watchers_limit"]
            .map(|name| node.metric(name).unwrap_or_default() as u32)
    };
    assert_eq!(limits(&node), [11, 5]);
    std::fs::write(&file, "LOG_LEVEL=info\nMAX_WATCHERS=7\nMAX_CONNECTIONS=9\n").expect("written");
    node.signal(Signal::HUP);
    super::program::wait_until("the limits have changed", || {
        let limits = limits(&node);
        if limits == [9, 7] { Ok(()) } else { Err(format!("{limits:?}")) }
    });
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    assert!(said().contains("took over LIVE_SETTINGS_FILE"), "at the new level: {}", said());
    // What makes no sense changes nothing, and is told.
    std::fs::write(&file, "MAX_CONNECTIONS=1\nAPI_PORT=80\n").expect("written");
    node.signal(Signal::HUP);
    super::program::wait_until("it is refused", || {
        if node.metric("bitacora_live_settings_failures_total") == Some(1.0) { Ok(()) } else { Err(said()) }
    });
    assert!(said().contains("line 2: API_PORT can't change while a node runs"), "{}", said());
    assert_eq!(limits(&node), [9, 7]);
    // Without a line the value is that of the variable, or the default.
    std::fs::write(&file, "").expect("written");
    super::program::wait_until("it is read without a signal, too", || {
        let limits = limits(&node);
        if limits == [4096, 5] { Ok(()) } else { Err(format!("{limits:?}")) }
    });
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
}

#[test]
fn wrong_live_settings_are_told_at_the_start() {
    let data = tempfile::tempdir().expect("a folder");
    let file = data.path().join("live");
    std::fs::write(&file, "LOG_LEVEL=loud\n").expect("written");
    let mut node = command(&["dev", "--nodes", "1", "--data-dir"]);
    node.arg(data.path().join("data")).arg("--live-settings-file").arg(&file);
    let ended = output(&mut node);
    assert_eq!(ended.status.code(), Some(1));
    let said = stderr(&ended);
    assert!(
        said.contains("LIVE_SETTINGS_FILE") && said.contains("line 1: LOG_LEVEL: 'loud' is no level"),
        "{said}"
    );
}

#[test]
fn a_second_stop_signal_ends_it_at_once() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = dev(data.path(), |it| {
        it.env("DRAIN_DELAY", "1h");
    });
    node.signal(Signal::TERM);
    node.answers("/health/ready", 503);
    node.signal(Signal::INT);
    assert_eq!(node.ended().code(), Some(1));
}

/// `nohup` starts a program with SIGHUP ignored.
#[test]
fn under_nohup_a_hangup_does_nothing() {
    let data = tempfile::tempdir().expect("a folder");
    let port = super::program::ports(2).to_string();
    let mut shell = Command::new("sh");
    let script = r#"trap "" HUP; exec "$0" dev --nodes 1 --port "$1" --data-dir "$2""#;
    shell.args(["-c", script, env!("CARGO_BIN_EXE_bitacora-node"), &port]).arg(data.path());
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut node = Program::run(shell, port.parse().expect("a port"));
    node.answers("/health/ready", 200);
    node.signal(Signal::HUP);
    // If it stopped, it would be unready before it answered this.
    node.signal(Signal::USR1);
    node.answers("/health/ready", 200);
    assert_eq!(node.ask("POST", "/rpc?key=k&value=v").expect("an answer").0, 200);
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
}

#[test]
fn a_signal_that_means_nothing_is_told_and_ignored() {
    let data = tempfile::tempdir().expect("a folder");
    let mut node = dev(data.path(), |_| ());
    node.signal(Signal::USR1);
    node.signal(Signal::USR2);
    node.answers("/rpc?key=k", 404);
    node.signal(Signal::TERM);
    let status = node.ended();
    let said = node.said();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("SIGUSR1") && said.contains("SIGUSR2"), "{said}");
}

/// Its memory has secrets in it.
#[test]
#[cfg(target_os = "linux")]
fn a_fault_leaves_no_core_dump() {
    use std::os::unix::process::ExitStatusExt as _;
    let data = tempfile::tempdir().expect("a folder");
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"ulimit -c unlimited; exec "$0" serve"#, env!("CARGO_BIN_EXE_bitacora-node")]);
    let port = super::program::ports(2);
    shell.env_clear().env("PATH", "/usr/bin:/bin").current_dir(data.path());
    shell.envs([
        ("BROKER_LIST", "127.0.0.1:1"),
        ("ZOOKEEPER_HOSTS", "127.0.0.1:1"),
        ("BIND_ADDRESS", "127.0.0.1"),
    ]);
    shell.env("API_PORT", port.to_string()).env("DATA_DIR", data.path().join("data"));
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut node = Program::run(shell, port);
    node.answers("/health/live", 200);
    node.signal(Signal::ABORT);
    let status = node.ended();
    assert_eq!(status.signal(), Some(Signal::ABORT.as_raw()), "{status}");
    assert!(!status.core_dumped(), "{status}");
}

/// A limit of the size of files ends a program that does not handle its signal.
#[test]
fn a_limit_of_file_sizes_does_not_end_it() {
    let data = tempfile::tempdir().expect("a folder");
    let log = data.path().join("node.log");
    let node = command(&[]);
    let mut shell = Command::new("sh");
    // In units of 512 bytes or of 1 KiB; either way more than the files of an empty store have.
    let script = r#"ulimit -f 32768; exec "$0" serve 2>>"$1""#;
    std::fs::File::create(&log).and_then(|file| file.set_len(64 << 20)).expect("a file beyond the limit");
    shell.args(["-c", script]).arg(node.get_program()).arg(&log);
    let port = super::program::ports(2);
    shell.env_clear().envs([
        ("BROKER_LIST", "127.0.0.1:1"),
        ("ZOOKEEPER_HOSTS", "127.0.0.1:1"),
        ("BIND_ADDRESS", "127.0.0.1"),
        ("LOG_LEVEL", "trace"),
    ]);
    shell.env("PATH", "/usr/bin:/bin").env("API_PORT", port.to_string());
    shell.env("DATA_DIR", data.path().join("data")).stdin(Stdio::null()).stdout(Stdio::null());
    let mut node = Program::run(shell, port);
    node.answers("/health/live", 200);
    assert!(node.metric("bitacora_log_lines_dropped_total") > Some(0.0));
    assert_eq!(node.ask("GET", "/health/live").expect("an answer").0, 200);
    node.signal(Signal::TERM);
    assert_eq!(node.ended().code(), Some(0));
}
