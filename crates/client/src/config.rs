//! Where the server's address and the API key come from.
//!
//! The first value that is not empty wins, in the order of the published clients: argument, environment, `./.env`,
//! `$XDG_CONFIG_HOME/nullspace/config.json`, `~/.nullspace/config.json`, default. Each value carries its [`Source`], so
//! that a surprising one can be explained.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::env_vars as env;

/// The server's address when nothing says otherwise.
pub const DEFAULT_BASE_URL: &str = "http://localhost:3000";
/// How long a request may stay silent when nothing says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a value was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Given by the caller, on the command line for instance.
    Argument,
    /// The environment variable of this name.
    Environment(&'static str),
    /// A line of the `.env` file in the working directory.
    DotEnv(&'static str),
    /// A key of a configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// Built in.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argument => f.write_str("argument"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::DotEnv(name) => write!(f, "{name} in ./.env"),
            Self::File { path, key } => write!(f, "{key} in {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// The value, without white space around it.
    pub value: String,
    /// Where it was found.
    pub source: Source,
}

impl fmt::Debug for Setting {
    /// Without the value, which may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// What a [`crate::Client`] is made from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of the server, without a slash at the end.
    pub base_url: Setting,
    /// The API key, if there is one.
    pub api_key: Option<Setting>,
    /// How long a request may stay silent.
    pub timeout: Duration,
}

/// Values given by the caller; they go before all others. One may be a key, so they cannot be printed.
#[derive(Clone, Default)]
pub struct Arguments {
    /// Address of the server. A blank one means [`DEFAULT_BASE_URL`], whatever the environment says.
    pub base_url: Option<String>,
    /// The API key.
    pub api_key: Option<String>,
}

/// What of the process decides: its environment and directories. A test makes its own. The environment may hold secrets,
/// so it cannot be printed.
#[derive(Clone, Default)]
pub struct Surroundings {
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// The working directory, where `.env` is looked for.
    pub cwd: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            // A variable that is no text cannot be an address or a key.
            env: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
        }
    }

    /// The configuration files, in the order in which they are read.
    #[must_use]
    pub fn config_files(&self) -> Vec<PathBuf> {
        self.xdg_config_file()
            .into_iter()
            .chain(self.login_config_file())
            .collect()
    }

    /// `$XDG_CONFIG_HOME/nullspace/config.json`, where the server puts the key it mints for the local user.
    #[must_use]
    pub fn xdg_config_file(&self) -> Option<PathBuf> {
        let base = match self.var(env::XDG_CONFIG_HOME) {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(self.var(env::HOME)?).join(".config"),
        };
        Some(base.join("nullspace").join("config.json"))
    }

    /// `~/.nullspace/config.json`, where `auth login` puts what it is given.
    #[must_use]
    pub fn login_config_file(&self) -> Option<PathBuf> {
        Some(
            PathBuf::from(self.var(env::HOME)?)
                .join(".nullspace")
                .join("config.json"),
        )
    }

    fn var(&self, name: &str) -> Option<&str> {
        self.env
            .get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }

    /// Finds address, key and time limit. Files that cannot be read, or hold something else than a JSON object, count
    /// as absent.
    #[must_use]
    pub fn resolve(&self, arguments: &Arguments) -> Config {
        let dotenv = std::fs::read_to_string(self.cwd.join(".env"))
            .map(|text| parse_dotenv(&text))
            .unwrap_or_default();
        let files: Vec<(PathBuf, Map<String, Value>)> = self
            .config_files()
            .into_iter()
            .map(|path| (path.clone(), read_object(&path)))
            .collect();
        let lookup = |names: &[&'static str], keys: &[&'static str]| {
            let in_env = names
                .iter()
                .map(|name| (self.env.get(*name), Source::Environment(name)));
            let in_dotenv = names
                .iter()
                .map(|name| (dotenv.get(*name), Source::DotEnv(name)));
            let text = in_env
                .chain(in_dotenv)
                .map(|(value, source)| (value.map(String::as_str), source));
            let in_files = keys.iter().flat_map(|key| {
                files.iter().map(move |(path, object)| {
                    (
                        object.get(*key).and_then(Value::as_str),
                        Source::File {
                            path: path.clone(),
                            key,
                        },
                    )
                })
            });
            text.chain(in_files).find_map(|(value, source)| {
                let value = value?.trim();
                (!value.is_empty()).then(|| Setting {
                    value: value.to_owned(),
                    source,
                })
            })
        };
        let default = || Setting {
            value: DEFAULT_BASE_URL.to_owned(),
            source: Source::Default,
        };
        let mut base_url = match arguments.base_url.as_deref().map(str::trim) {
            Some("") => default(),
            Some(url) => Setting {
                value: url.to_owned(),
                source: Source::Argument,
            },
            None => lookup(
                &[env::NULLSPACE_API_URL, env::NULLSPACE_BASE_URL],
                &["base_url", "api_url"],
            )
            .unwrap_or_else(default),
        };
        base_url
            .value
            .truncate(base_url.value.trim_end_matches('/').len());
        let api_key = match arguments
            .api_key
            .as_deref()
            .map(str::trim)
            .filter(|key| !key.is_empty())
        {
            Some(key) => Some(Setting {
                value: key.to_owned(),
                source: Source::Argument,
            }),
            None => lookup(&[env::NULLSPACE_API_KEY], &["api_key"]),
        };
        let timeout = [
            env::NULLSPACE_REQUEST_TIMEOUT_SECONDS,
            env::NULLSPACE_REQUEST_TIMEOUT,
        ]
        .iter()
        .find_map(|name| self.var(name)?.parse::<f64>().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|timeout| !timeout.is_zero())
        .unwrap_or(DEFAULT_TIMEOUT);
        Config {
            base_url,
            api_key,
            timeout,
        }
    }
}

/// The lines `KEY=VALUE`; `#` opens a comment line, quotes around a value are taken off, the last of two equal keys
/// counts. There is no `export`.
fn parse_dotenv(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| {
            let value = value.trim().trim_matches(['\'', '"']);
            (key.trim().to_owned(), value.to_owned())
        })
        .collect()
}

/// The JSON object in a file, or an empty one.
#[must_use]
pub fn read_object(path: &Path) -> Map<String, Value> {
    match std::fs::read(path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
    {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// Puts `values` into the JSON object of a configuration file, leaving its other keys alone. Only the owner can read
/// the file afterwards; readers see the old file or the new one, never a part.
///
/// # Errors
/// If the directory or the file cannot be written.
pub fn write_values(path: &Path, values: &[(&str, &str)]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)?;
    let mut object = read_object(path);
    for (key, value) in values {
        object.insert((*key).to_owned(), Value::String((*value).to_owned()));
    }
    let mut text = serde_json::to_string_pretty(&object)?;
    text.push('\n');
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    let placed = written.and_then(|()| std::fs::rename(&temporary, path));
    if placed.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A world of files and variables.
    struct World {
        dir: tempfile::TempDir,
        surroundings: Surroundings,
    }

    impl World {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let home = dir.path().join("home");
            let cwd = dir.path().join("cwd");
            std::fs::create_dir_all(&home).expect("home");
            std::fs::create_dir_all(&cwd).expect("cwd");
            let env = BTreeMap::from([("HOME".to_owned(), home.display().to_string())]);
            Self {
                dir,
                surroundings: Surroundings { env, cwd },
            }
        }

        fn var(mut self, name: &str, value: &str) -> Self {
            self.surroundings
                .env
                .insert(name.to_owned(), value.to_owned());
            self
        }

        fn file(self, path: &str, content: &str) -> Self {
            let path = self.dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            std::fs::write(path, content).expect("a file");
            self
        }

        fn resolve(&self) -> Config {
            self.surroundings.resolve(&Arguments::default())
        }

        fn url(&self) -> String {
            self.resolve().base_url.value
        }
    }

    #[test]
    fn the_first_value_that_is_not_empty_wins() {
        let world = World::new();
        assert_eq!(world.url(), DEFAULT_BASE_URL);
        assert_eq!(world.resolve().base_url.source, Source::Default);
        assert!(world.resolve().api_key.is_none());

        let world = world.file(
            "home/.nullspace/config.json",
            r#"{"api_url": "http://old-api/"}"#,
        );
        assert_eq!(world.url(), "http://old-api");
        let world = world.file(
            "home/.config/nullspace/config.json",
            r#"{"api_url": "http://xdg-api", "base_url": 3}"#,
        );
        assert_eq!(world.url(), "http://xdg-api");
        let world = world.file(
            "home/.nullspace/config.json",
            r#"{"base_url": "http://old-base"}"#,
        );
        assert_eq!(
            world.url(),
            "http://old-base",
            "base_url in any file goes before api_url"
        );
        let world = world.file(
            "cwd/.env",
            "NULLSPACE_API_URL=\n# no\nNULLSPACE_BASE_URL='http://dot/env//'\n",
        );
        assert_eq!(world.url(), "http://dot/env");
        assert_eq!(
            world.resolve().base_url.source,
            Source::DotEnv("NULLSPACE_BASE_URL")
        );
        let world = world.var("NULLSPACE_BASE_URL", "http://env-base");
        assert_eq!(world.url(), "http://env-base");
        let world = world.var("NULLSPACE_API_URL", "  ");
        assert_eq!(world.url(), "http://env-base");
        let world = world.var("NULLSPACE_API_URL", " http://env-api ");
        assert_eq!(world.url(), "http://env-api");
        assert_eq!(
            world.resolve().base_url.source,
            Source::Environment("NULLSPACE_API_URL")
        );
        let argument = |url: &str| Arguments {
            base_url: Some(url.to_owned()),
            api_key: None,
        };
        assert_eq!(
            world
                .surroundings
                .resolve(&argument("http://arg/"))
                .base_url
                .value,
            "http://arg"
        );
        assert_eq!(
            world.surroundings.resolve(&argument("")).base_url.value,
            DEFAULT_BASE_URL
        );
    }

    #[test]
    fn keys_have_the_same_order() {
        let world = World::new().file("home/.nullspace/config.json", r#"{"api_key": "old"}"#);
        let key = |world: &World| world.resolve().api_key.expect("a key").value;
        assert_eq!(key(&world), "old");
        let world = world.file("xdg/nullspace/config.json", r#"{"api_key": "xdg"}"#);
        let xdg = world.dir.path().join("xdg").display().to_string();
        let world = world.var("XDG_CONFIG_HOME", &xdg);
        assert_eq!(key(&world), "xdg");
        let world = world.file(
            "cwd/.env",
            "export NULLSPACE_API_KEY=no\nNULLSPACE_API_KEY=a\nNULLSPACE_API_KEY=dot\n",
        );
        assert_eq!(key(&world), "dot");
        let world = world.var("NULLSPACE_API_KEY", "env");
        assert_eq!(key(&world), "env");
        let broken = World::new().file("home/.config/nullspace/config.json", "{not json");
        assert!(broken.resolve().api_key.is_none());
    }

    #[test]
    fn the_time_limit_is_a_number_of_seconds() {
        let limit = |name: &str, value: &str| World::new().var(name, value).resolve().timeout;
        assert_eq!(
            limit("NULLSPACE_REQUEST_TIMEOUT", "1.5"),
            Duration::from_millis(1500)
        );
        assert_eq!(
            limit("NULLSPACE_REQUEST_TIMEOUT_SECONDS", "2"),
            Duration::from_secs(2)
        );
        for bad in ["x", "-1", "0", "nan", "1e400"] {
            assert_eq!(
                limit("NULLSPACE_REQUEST_TIMEOUT", bad),
                DEFAULT_TIMEOUT,
                "{bad}"
            );
        }
    }

    #[test]
    fn written_values_keep_the_others_and_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let world = World::new().file(
            "home/.nullspace/config.json",
            r#"{"x": {"y": 1}, "api_key": "old"}"#,
        );
        let path = world.surroundings.login_config_file().expect("a home");
        write_values(&path, &[("api_key", "new"), ("base_url", "http://u")]).expect("written");
        let object = read_object(&path);
        assert_eq!(object["x"]["y"], 1);
        assert_eq!(world.resolve().api_key.expect("a key").value, "new");
        assert_eq!(world.url(), "http://u");
        let mode = std::fs::metadata(&path)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            std::fs::read_dir(path.parent().expect("a parent"))
                .expect("readable")
                .count(),
            1
        );
    }

    #[test]
    fn a_setting_does_not_show_its_value() {
        let world = World::new().var("NULLSPACE_API_KEY", "secret");
        assert!(!format!("{:?}", world.resolve()).contains("secret"));
    }
}
