//! Values that arrive as text: `KEY=VALUE`, JSON objects, files of variables.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};

use nullspace_client::agents::EnvSpec;
use serde_json::{Map, Value};

use crate::app::App;
use crate::error::CliError;

/// `--env` and `--env-file`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EnvArgs {
    /// A variable; may be repeated. It is not stored with the deployment.
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A file with variables; --env goes over it.
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
}

impl EnvArgs {
    /// Whether any was given.
    pub(crate) fn is_given(&self) -> bool {
        !self.env.is_empty() || self.env_file.is_some()
    }

    /// Those given.
    ///
    /// # Errors
    /// If one makes no sense, or the file cannot be read.
    pub(crate) fn given(&self) -> Result<BTreeMap<String, String>, CliError> {
        let mut envs = match &self.env_file {
            Some(path) => env_file(path)?,
            None => BTreeMap::new(),
        };
        envs.extend(pairs("--env", &self.env)?);
        Ok(envs)
    }
}

/// Asks on the terminal whether to go on; not with `--yes` or `--json`, where the answer is yes.
///
/// # Errors
/// If there is nobody to ask.
pub(crate) fn confirmed(app: &App, yes: bool, question: &str) -> Result<bool, CliError> {
    if yes || app.ui.json {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        return Err(CliError::usage("not deleted: there is nobody to ask").hint("Add --yes."));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| CliError::local("cannot read the answer", &error))?;
    if matches!(answer.trim().to_lowercase().as_str(), "y" | "yes") {
        return Ok(true);
    }
    app.ui.note("Not deleted.");
    Ok(false)
}

/// An id or a name. An empty one comes from a `$(…)` that printed nothing; asking the server about it would only hide that.
///
/// # Errors
/// If it is empty.
pub(crate) fn named(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        return Err("it is empty; did the command that should have printed it fail?");
    }
    Ok(text.to_owned())
}

/// A JSON object from the text after `flag`.
///
/// # Errors
/// If it is something else.
pub(crate) fn object(flag: &str, text: &str) -> Result<Map<String, Value>, CliError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(
            CliError::usage(format!("{flag} must be a JSON object")).hint(format!(
                "For example: {flag} '{{\"topic\": \"machines\"}}'."
            )),
        ),
        Err(error) => Err(
            CliError::usage(format!("{flag} is not JSON: {error}")).hint(format!(
                "For example: {flag} '{{\"topic\": \"machines\"}}'."
            )),
        ),
    }
}

/// A JSON object from a file; `-` is standard input.
///
/// # Errors
/// If it cannot be read or is something else.
pub(crate) fn object_file(flag: &str, path: &Path) -> Result<Map<String, Value>, CliError> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|error| {
        CliError::usage(format!("{flag}: cannot read {}: {error}", path.display()))
            .hint("Name a file that holds a JSON object.")
    })?;
    object(flag, &text)
}

/// `KEY=VALUE` pairs over a JSON object.
///
/// # Errors
/// If either makes no sense.
pub(crate) fn metadata(
    pairs: &[String],
    json: Option<&str>,
) -> Result<Option<Map<String, Value>>, CliError> {
    let mut object = json
        .map(|json| object("--metadata-json", json))
        .transpose()?;
    for (key, value) in self::pairs("--metadata", pairs)? {
        object
            .get_or_insert_default()
            .insert(key, Value::String(value));
    }
    Ok(object)
}

/// `KEY=VALUE` pairs; of two with one key the last counts.
///
/// # Errors
/// If one has no `=`, or a name that is empty or has white space.
pub(crate) fn pairs(flag: &str, pairs: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    pairs.iter().map(|pair| self::pair(flag, pair)).collect()
}

fn pair(flag: &str, pair: &str) -> Result<(String, String), CliError> {
    let (name, value) = pair
        .split_once('=')
        // The text may be a secret that lost its name, so it is not repeated.
        .ok_or_else(|| {
            CliError::usage(format!("{flag}: expected KEY=VALUE"))
                .hint(format!("For example: {flag} TOPIC=machines."))
        })?;
    if name.is_empty() || name.chars().any(char::is_whitespace) {
        return Err(CliError::usage(format!(
            "{flag}: a name must not be empty or have white space: {name:?}"
        )));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// The variables of a file: a name, `=`, and everything after it, quotes and all. Blank lines and lines that begin with
/// `#` are skipped; `export ` before a name is.
///
/// # Errors
/// If the file cannot be read or a line is something else.
pub(crate) fn env_file(path: &Path) -> Result<BTreeMap<String, String>, CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        CliError::usage(format!(
            "--env-file: cannot read {}: {error}",
            path.display()
        ))
    })?;
    let mut envs = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let (name, value) = pair(&format!("{}:{}", path.display(), index + 1), line)?;
        envs.insert(name, value);
    }
    Ok(envs)
}

/// The variables of `what`, a run for instance: those given, then what `spec` names and this process has.
///
/// # Errors
/// If a required one is still missing.
pub(crate) fn runtime_envs(
    what: &str,
    mut given: BTreeMap<String, String>,
    spec: &EnvSpec,
    of_process: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, CliError> {
    for name in spec.required.iter().chain(&spec.optional) {
        if !given.contains_key(name)
            && let Some(value) = of_process(name)
        {
            given.insert(name.clone(), value);
        }
    }
    let mut missing: Vec<&str> = Vec::new();
    for name in &spec.required {
        if !given.contains_key(name) && !missing.contains(&name.as_str()) {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(given);
    }
    Err(CliError::usage(format!(
        "missing required env vars for {what}: {}",
        missing.join(", ")
    ))
    .hint(format!(
        "Export them, or pass --env {}=… or --env-file FILE.",
        missing[0]
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn pairs_split_at_the_first_sign() {
        let pairs = pairs("--env", &owned(&["A=1", "B==x y=", "A=2", "C="])).expect("pairs");
        let expected = [("A", "2"), ("B", "=x y="), ("C", "")];
        assert_eq!(
            pairs,
            expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        );
        for bad in ["A", "=x", "A B=c", " A=b"] {
            assert_eq!(
                super::pairs("--env", &owned(&[bad])).expect_err(bad).exit(),
                2
            );
        }
        let told = super::pairs("--env", &owned(&["hunter2"]))
            .expect_err("no sign")
            .message;
        assert!(!told.contains("hunter2"), "{told}");
    }

    #[test]
    fn files_of_variables_keep_their_quotes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("env");
        std::fs::write(&path, "\n# no\n  A='x' \nexport B=a=b\nexport  C=\n").expect("written");
        let envs = env_file(&path).expect("read");
        let expected = [("A", "'x'"), ("B", "a=b"), ("C", "")];
        assert_eq!(
            envs,
            expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        );
        std::fs::write(&path, "A B=1\n").expect("written");
        let error = env_file(&path).expect_err("a name with a space");
        assert!(error.message.contains(":1"), "{}", error.message);
    }

    #[test]
    fn required_names_must_be_somewhere() {
        let spec = EnvSpec {
            required: owned(&["R", "S", "R"]),
            optional: owned(&["O", "P"]),
        };
        let given = BTreeMap::from([("R".to_owned(), "given".to_owned())]);
        let process = |name: &str| matches!(name, "R" | "S" | "O").then(|| format!("own {name}"));
        let envs = runtime_envs("agent run", given.clone(), &spec, process).expect("all there");
        let expected = [("O", "own O"), ("R", "given"), ("S", "own S")];
        assert_eq!(
            envs,
            expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        );
        let missing =
            runtime_envs("agent run", BTreeMap::new(), &spec, |_| None).expect_err("nothing there");
        assert_eq!(
            missing.message,
            "missing required env vars for agent run: R, S"
        );
    }

    #[test]
    fn metadata_is_an_object_with_pairs_over_it() {
        assert_eq!(metadata(&[], None).expect("none"), None);
        let object = metadata(&owned(&["a=2"]), Some(r#"{"a": 1, "b": [1]}"#))
            .expect("an object")
            .expect("some");
        assert_eq!(
            Value::Object(object),
            serde_json::json!({"a": "2", "b": [1]})
        );
        assert_eq!(metadata(&[], Some("[1]")).expect_err("no object").exit(), 2);
    }
}
