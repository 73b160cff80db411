//! Whether others see the memory of the process: it has passwords, tokens and keys in it, and everybody's values.

use anyhow::Result;

/// Keeps the memory to the process: there is no file of it when the process ends by a fault (a core dump), and only root may look into it or
/// read the variables that it was started with.
///
/// # Errors
/// When the system refuses.
#[cfg(target_os = "linux")]
pub fn keep_private() -> Result<()> {
    use anyhow::Context as _;
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("the process can't keep its memory to itself")
}

/// Other systems are for development.
///
/// # Errors
/// Never.
#[cfg(not(target_os = "linux"))]
pub fn keep_private() -> Result<()> {
    Ok(())
}
