//! The README's table of settings is the command line's.

use std::fmt::Write as _;

use bitacora_node::settings::Cli;
use clap::CommandFactory;

fn table() -> String {
    let command = Cli::command();
    let mut table = "\n| flag | variable | default | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    let serve = command.find_subcommand("serve").expect("serve is a command");
    for argument in serve.get_arguments().filter(|argument| argument.get_env().is_some()) {
        let flag = argument.get_long().expect("every setting has a flag");
        let variable = argument.get_env().expect("filtered").to_string_lossy();
        assert_eq!(variable, flag.to_uppercase().replace('-', "_"), "a flag and its variable have one name");
        let mut help = argument.get_help().expect("every setting is explained").to_string();
        let mut default = argument
            .get_default_values()
            .iter()
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect::<String>();
        // Defaults that depend on something are part of the help.
        if let Some((text, rest)) = help.clone().split_once(" [default: ") {
            default = rest.trim_end_matches(']').to_owned();
            help = text.to_owned();
        }
        let values = argument.get_possible_values();
        if !values.is_empty() && argument.get_value_names().is_some_and(|names| names[0] != "BOOL") {
            let names: Vec<_> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
            let _ = write!(help, ": {}", names.join(", "));
        }
        let _ = writeln!(table, "| `--{flag}` | `{variable}` | {default} | {help} |");
    }
    table
}

#[test]
fn the_table_of_settings_is_true() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("checked by node/tests/readme.rs -->\n").expect("the table's start");
    let (written, _) = rest.split_once("<!-- end of settings -->").expect("the table's end");
    let expected = table();
    assert!(written.trim() == expected.trim(), "the README's table of settings should be:\n{expected}");
}
