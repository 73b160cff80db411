//! Settings that come from variables.

use clap::{Arg, Command};

/// Makes a command line, its subcommands included, take variables that are empty for ones that are not set: Compose makes
/// a variable that nobody set empty (`${API_PORT:-}`), and clap would take it for a value.
#[must_use]
pub fn without_empty_variables(command: Command) -> Command {
    command.mut_args(without_empty_variable).mut_subcommands(without_empty_variables)
}

fn without_empty_variable(argument: Arg) -> Arg {
    let value = argument.get_env().and_then(std::env::var_os);
    if value.is_some_and(|value| value.is_empty()) { argument.env(None::<&str>) } else { argument }
}
