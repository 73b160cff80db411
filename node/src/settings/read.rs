//! The command line and the environment, as orchestrators make it, become settings; what is wrong becomes a sentence.

use std::ffi::OsString;

use bitacora_program::console;
use bitacora_program::environment::without_empty_variables;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory as _, FromArgMatches as _};

use super::Cli;

impl Cli {
    /// Reads the command line and the environment; without a command it is `serve`'s. An empty variable counts as unset. Ends
    /// the process if something is wrong, or only help was asked for.
    #[must_use]
    pub fn read() -> Self {
        let mut arguments: Vec<_> = std::env::args_os().collect();
        let of_the_program = ["-h", "--help", "-V", "--version"];
        let first = arguments.get(1).map(|argument| argument.to_string_lossy().into_owned());
        if first.is_none_or(|first| first.starts_with('-') && !of_the_program.contains(&first.as_str())) {
            arguments.insert(1.min(arguments.len()), "serve".into());
        }
        parse(arguments).unwrap_or_else(|error| {
            let _ = error.print();
            // Clap names the flag; who sets the variable has never seen it. Where nobody reads it, the exit code tells.
            if let Some(setting) = Setting::blamed_by(&error) {
                console::tell(setting.hint(wrong_value(&error)));
            }
            std::process::exit(error.exit_code())
        })
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = without_empty_variables(Cli::command());
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// A setting that has a flag and a variable.
struct Setting {
    flag: String,
    variable: String,
}

impl Setting {
    fn blamed_by(error: &clap::Error) -> Option<Self> {
        // Of one that the command does not have, another command's variable would be told.
        if error.kind() == ErrorKind::UnknownArgument {
            return None;
        }
        let ContextValue::String(argument) = error.get(ContextKind::InvalidArg)? else { return None };
        let flag = argument.strip_prefix("--")?.split([' ', '=', '[']).next()?;
        let command = Cli::command();
        let mut arguments = command.get_subcommands().flat_map(Command::get_arguments);
        let argument =
            arguments.find(|argument| argument.get_long() == Some(flag) && argument.get_env().is_some())?;
        let variable = argument.get_env()?.to_string_lossy().into_owned();
        Some(Self { flag: flag.to_owned(), variable })
    }

    fn hint(&self, value: Option<&str>) -> String {
        let Self { flag, variable } = self;
        match value.filter(|value| is_service_link(value)) {
            None => format!("\nThe setting is also the environment variable {variable}."),
            Some(value) => {
                // A Service `api` makes API_PORT, API_SERVICE_HOST and so on; dashes become underscores.
                let service =
                    variable.strip_suffix("_PORT").map(|name| name.to_lowercase().replace('_', "-"));
                let service = service.map_or_else(String::new, |service| format!(" named '{service}'"));
                format!(
                    "\n{variable}={value} comes from Kubernetes, which sets it in every pod beside a Service{service}. \
                     Set enableServiceLinks: false in the pod's spec, give the Service another name, or say --{flag}."
                )
            }
        }
    }
}

fn wrong_value(error: &clap::Error) -> Option<&str> {
    match error.get(ContextKind::InvalidValue)? {
        ContextValue::String(value) => Some(value),
        _ => None,
    }
}

/// Whether Kubernetes makes such a value for the port of a Service.
fn is_service_link(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
}
