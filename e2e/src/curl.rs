//! curl, as people use it.

use std::process::Stdio;

use tokio::process::Command;

/// Whether it is there.
pub(crate) async fn available() -> bool {
    let mut command = Command::new("curl");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

/// `curl -N` of a URL: what comes is printed as it comes. It goes on for as long as the answer does.
pub fn follow(url: &str, headers: &[String]) -> Command {
    let mut command = Command::new("curl");
    command.args(["--no-buffer", "--silent", "--fail", "--noproxy", "*", "--connect-timeout", "5"]);
    for header in headers {
        command.args(["--header", header]);
    }
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}
