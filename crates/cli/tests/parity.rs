//! The command line against that of the published client: every command of its `agent` group and of the groups of machines
//! that are there ([`GROUPS`]), every flag and every positional is accepted here too. Ours may have more.
//!
//! Needs `NULLSPACE_TEST_PYTHON`, a Python with `nullspace-sdk[cli]==0.1.9` installed, and says so when skipped. No
//! server is asked.

use std::path::Path;
use std::process::Command as Process;

use clap::{Arg, ArgAction, Command, CommandFactory as _};
use nullspace_cli::Cli;
use serde_json::Value;

/// The beginnings of the commands that are compared.
const GROUPS: &[&[&str]] = &[
    &["agent"],
    &["auth"],
    &["doctor"],
    &["lifecycle"],
    &["monitor"],
    &["sandbox", "code"],
    &["sandbox", "create"],
    &["sandbox", "exec"],
    &["sandbox", "file"],
    &["sandbox", "fork"],
    &["sandbox", "get"],
    &["sandbox", "git"],
    &["sandbox", "hibernate"],
    &["sandbox", "host"],
    &["sandbox", "kill"],
    &["sandbox", "list"],
    &["sandbox", "metrics"],
    &["sandbox", "preview-proxy-target"],
    &["sandbox", "preview-url"],
    &["sandbox", "process"],
    &["sandbox", "pty"],
    &["sandbox", "resume"],
    &["sandbox", "ssh-access"],
    &["sandbox", "timeout"],
    &["sandbox", "upload"],
    &["sandbox", "url"],
    &["snapshot"],
    &["ssh"],
    &["template", "alias"],
    &["template", "build"],
    &["template", "build-status"],
    &["template", "builds"],
    &["template", "cancel"],
    &["template", "claim"],
    &["template", "delete"],
    &["template", "exists"],
    &["template", "get"],
    &["template", "list"],
    &["template", "logs"],
    &["template", "namespace"],
    &["template", "plan"],
    &["template", "promote"],
    &["template", "rename"],
    &["template", "reserve"],
    &["template", "retry"],
    &["template", "tag"],
    &["template", "validate"],
    &["template", "visibility"],
    &["template", "wait"],
    &["volume"],
];

/// What the published program says about itself.
fn schema(python: &str) -> Value {
    let program = Path::new(python).with_file_name("nullspace");
    let output = Process::new(&program)
        .arg("schema")
        .output()
        .expect("the published program beside its Python");
    assert!(output.status.success(), "{program:?}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn is(value: &Value, key: &str) -> bool {
    value[key] == Value::Bool(true)
}

fn flags(param: &Value) -> impl Iterator<Item = &str> {
    list(param, "flags").iter().filter_map(Value::as_str)
}

/// The words that an option takes, if it does not take any.
fn choices(param: &Value) -> Vec<&str> {
    let of = |schema| list(schema, "enum").iter().filter_map(Value::as_str);
    let schema = &param["json_schema"];
    of(schema).chain(of(&schema["items"])).collect()
}

/// A value that the option takes in the published program.
fn example(param: &Value) -> &str {
    if let Some(choice) = choices(param).first() {
        return choice;
    }
    match text(param, "type") {
        "integer" | "integer range" | "float" => "7",
        _ if text(param, "primary_flag").ends_with("-json") => "{}",
        _ => "A=b",
    }
}

fn is_called(arg: &Arg, flag: &str) -> bool {
    match flag.strip_prefix("--") {
        Some(long) => {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(long) || aliases.contains(&long)
        }
        None => arg.get_short() == flag.chars().nth(1),
    }
}

/// What is wrong with our command for an option of theirs.
fn option(ours: &Command, param: &Value, wrong: &mut Vec<String>) {
    for flag in flags(param) {
        let Some(arg) = ours.get_arguments().find(|arg| is_called(arg, flag)) else {
            wrong.push(format!("{flag} is missing"));
            continue;
        };
        let takes_value = arg.get_action().takes_values();
        if is(param, "is_flag") == takes_value {
            wrong.push(format!("{flag}: only one of the two takes a value"));
        }
        if is(param, "multiple") && !matches!(arg.get_action(), ArgAction::Append) {
            wrong.push(format!("{flag} cannot be repeated"));
        }
        if arg.is_required_set() && !is(param, "required") {
            wrong.push(format!("{flag} is required"));
        }
        let own = arg.get_possible_values();
        for choice in choices(param) {
            if takes_value && !own.is_empty() && !own.iter().any(|own| own.matches(choice, false)) {
                wrong.push(format!("{flag} does not take {choice}"));
            }
        }
    }
}

/// What is wrong with our command for one of theirs.
fn command(ours: &Command, theirs: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let (mut positionals, mut required) = (0, 0);
    for param in list(theirs, "params") {
        if text(param, "kind") == "option" {
            option(ours, param, &mut wrong);
        } else {
            positionals += 1;
            required += usize::from(is(param, "required"));
        }
    }
    let own: Vec<_> = ours.get_positionals().collect();
    if own.len() < positionals {
        wrong.push(format!("only {} of {positionals} positionals", own.len()));
    }
    if own.iter().filter(|arg| arg.is_required_set()).count() > required {
        wrong.push(format!("more than {required} positionals are required"));
    }
    wrong
}

/// The command lines that show it: with nothing but what is required, and with each option alone.
fn lines(theirs: &Value) -> Vec<Vec<&str>> {
    let mut plain = vec!["nullspace"];
    plain.extend(list(theirs, "path").iter().filter_map(Value::as_str));
    let params = list(theirs, "params");
    for param in params {
        if text(param, "kind") == "argument" && is(param, "required") {
            // Of a process, if it is a number.
            let is_number = text(param, "type").starts_with("integer");
            plain.push(if is_number { "7" } else { "name" });
        }
    }
    for param in params {
        if text(param, "kind") == "option" && is(param, "required") {
            plain.extend([text(param, "primary_flag"), example(param)]);
        }
    }
    let mut lines = vec![plain.clone()];
    for param in params.iter().filter(|param| !is(param, "required")) {
        for flag in flags(param) {
            let mut line = plain.clone();
            for _ in 0..=usize::from(is(param, "multiple")) {
                line.push(flag);
                if !is(param, "is_flag") {
                    line.push(example(param));
                }
            }
            lines.push(line);
        }
    }
    lines
}

#[test]
fn every_published_command_is_accepted() {
    let Ok(python) = std::env::var("NULLSPACE_TEST_PYTHON") else {
        println!("skipped: NULLSPACE_TEST_PYTHON is not set");
        return;
    };
    let schema = schema(&python);
    let mut ours = Cli::command();
    // Global flags come down to each command.
    ours.build();
    let (mut compared, mut parsed, mut wrong) = (0, 0, Vec::new());
    for (id, theirs) in schema["commands"].as_object().expect("commands") {
        let path = list(theirs, "path");
        let words: Vec<&str> = path.iter().filter_map(Value::as_str).collect();
        if !GROUPS.iter().any(|group| words.starts_with(group)) || text(theirs, "kind") != "command"
        {
            continue;
        }
        compared += 1;
        // By alias too.
        let found = path
            .iter()
            .filter_map(Value::as_str)
            .try_fold(&ours, |command, word| command.find_subcommand(word));
        let Some(found) = found else {
            wrong.push(format!("{id} is missing"));
            continue;
        };
        for what in command(found, theirs) {
            wrong.push(format!("{id}: {what}"));
        }
        for line in lines(theirs) {
            parsed += 1;
            if let Err(error) = ours.clone().try_get_matches_from(&line) {
                wrong.push(format!("{}: {error}", line.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("compared {compared} commands, parsed {parsed} command lines");
    assert!(compared >= 52, "only {compared} commands are published");
}
