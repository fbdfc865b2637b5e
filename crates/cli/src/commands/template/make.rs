//! The words of `template build`: a source, then steps in their order, each with what belongs to it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nullspace_api::machine::Isolation;
use nullspace_api::template::{Mode, Readiness};
use nullspace_api::template_build::{BuildStep, CopyItem, RegistryAuth, Secret};

use super::history::LogFormat;
use crate::error::CliError;

/// A build. The order of the steps is the order of the words.
#[derive(Debug, clap::Args)]
#[command(after_help = "Sources, one of them, first:
  --from-template NAME  --from-image IMAGE  --from-dockerfile PATH  --from-dockerfile-content TEXT
  --from-archive PATH[:NAME]: an image in a file (OCI, docker save, root file system) or an OCI layout's directory
  --from-base-image [VERSION]  --from-ubuntu-image [VERSION]  --from-debian-image [TAG]
  --from-python-image VERSION  --from-node-image VERSION  --from-bun-image VERSION  --image-variant VARIANT

Steps:
  --run-cmd COMMAND [--run-user USER]
  --apt-install PACKAGES  --pip-install PACKAGES [--pip-user-install]
  --npm-install PACKAGES [--npm-global]  --bun-install PACKAGES [--bun-global]
  --copy-src PATH … --copy-dst PATH [--copy-user USER] [--copy-mode MODE] [--copy-force-upload]
  --git-clone URL [--git-path PATH] [--git-branch NAME] [--git-depth N]
  --make-dir PATH [--make-dir-mode MODE]  --make-symlink-target TEXT --make-symlink-path PATH
  --rename-src PATH --rename-dst PATH [--rename-force]  --remove PATH [--remove-recursive] [--remove-force]
  --set-workdir PATH  --set-user USER

What machines have: --isolation KIND (native, gvisor, microvm, strongest), --start-cmd COMMAND, --set-runtime-env NAME=VALUE, and --ready-port PORT, --ready-url URL,
--ready-cmd COMMAND, --ready-file PATH, --ready-process NAME or --ready-timeout-ms MS, with --ready-timeout-secs,
--ready-interval-ms and --ready-startup-grace-secs.

Everything else: --name NAME[:TAG] --tag TAG --file-context DIR --file-ignore PATTERN --set-build-env NAME=VALUE
--build-secret ID=VALUE --build-secret-env ID[=VARIABLE] --build-secret-file ID=PATH --registry-username NAME
--registry-password PASSWORD --cpu-count N --memory-mb N --no-internet-access --skip-cache --background
--log-format text|jsonl|quiet

Examples:
  nullspace template build --from-template base --apt-install 'jq ripgrep' --run-cmd 'pip install polars' --name tools
  nullspace template build --from-dockerfile ./Dockerfile --build-secret-env token=NPM_TOKEN --name app:v2")]
pub(super) struct Args {
    /// See below.
    #[arg(
        value_name = "ARGS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    args: Vec<String>,
}

/// Where a build starts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum From {
    #[default]
    Nothing,
    Base(String),
    /// An image in a file or a directory, and its name among several.
    Archive(String),
    Dockerfile(PathBuf),
    Content(String),
}

/// What was asked.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) from: From,
    pub(super) steps: Vec<BuildStep>,
    pub(super) name: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) context: Option<PathBuf>,
    pub(super) ignore: Vec<String>,
    pub(super) build_envs: BTreeMap<String, String>,
    pub(super) runtime_envs: BTreeMap<String, String>,
    pub(super) start_cmd: Option<String>,
    pub(super) readiness: Option<Readiness>,
    pub(super) workdir: Option<String>,
    pub(super) user: Option<String>,
    pub(super) secrets: [Vec<String>; 3],
    pub(super) auth: Option<RegistryAuth>,
    pub(super) vcpus: Option<u32>,
    pub(super) memory_mib: Option<u64>,
    pub(super) no_internet: bool,
    pub(super) isolation: Option<Isolation>,
    pub(super) skip_cache: bool,
    pub(super) background: bool,
    pub(super) log_format: LogFormat,
}

struct Words<'a> {
    words: std::iter::Peekable<std::slice::Iter<'a, String>>,
}

impl Words<'_> {
    fn value(&mut self, flag: &str) -> Result<String, CliError> {
        self.words
            .next()
            .cloned()
            .ok_or_else(|| CliError::usage(format!("{flag}: needs a value")))
    }

    fn number<T: std::str::FromStr>(&mut self, flag: &str) -> Result<T, CliError> {
        let text = self.value(flag)?;
        text.parse()
            .map_err(|_| CliError::usage(format!("{flag} {text}: is no number")))
    }

    /// A value, if the next word is none of ours.
    fn perhaps(&mut self) -> Option<String> {
        self.words.next_if(|word| !word.starts_with("--")).cloned()
    }

    fn pair(&mut self, flag: &str, pairs: &mut BTreeMap<String, String>) -> Result<(), CliError> {
        let text = self.value(flag)?;
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| CliError::usage(format!("{flag}: must be NAME=VALUE")))?;
        pairs.insert(name.to_owned(), value.to_owned());
        Ok(())
    }
}

fn packages(text: &str) -> Vec<String> {
    text.split([' ', ','])
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// What belongs to another word came without it.
fn alone(flag: &str, to: &str) -> CliError {
    CliError::usage(format!("{flag}: must follow {to}"))
}

impl Args {
    /// Reads the words.
    pub(super) fn read(&self, json: &mut bool) -> Result<Asked, CliError> {
        let mut words = Words {
            words: self.args.iter().peekable(),
        };
        let mut asked = Asked::default();
        let (mut variant, mut registry) = (None, [None, None]);
        let mut timing = Timing::default();
        while let Some(flag) = words.words.next() {
            if step(flag, &mut words, &mut asked.steps)? {
                continue;
            }
            let base = |name: &str, tag: String| From::Base(format!("{name}:{tag}"));
            match flag.as_str() {
                "--from-template" => asked.from = From::Base(words.value(flag)?),
                "--from-image" => asked.from = From::Base(words.value(flag)?),
                "--from-archive" => asked.from = From::Archive(words.value(flag)?),
                "--from-dockerfile" => asked.from = From::Dockerfile(words.value(flag)?.into()),
                "--from-dockerfile-content" => asked.from = From::Content(words.value(flag)?),
                "--from-base-image" | "--from-ubuntu-image" => {
                    asked.from = base("ubuntu", words.perhaps().unwrap_or("22.04".into()));
                }
                "--from-debian-image" => {
                    asked.from = base("debian", words.perhaps().unwrap_or("stable-slim".into()));
                }
                "--from-python-image" => asked.from = base("python", words.value(flag)?),
                "--from-node-image" => asked.from = base("node", words.value(flag)?),
                "--from-bun-image" => asked.from = base("oven/bun", words.value(flag)?),
                "--image-variant" => variant = Some(words.value(flag)?),
                "--name" => asked.name = Some(words.value(flag)?),
                "--tag" => asked.tags.push(words.value(flag)?),
                "--file-context" => asked.context = Some(words.value(flag)?.into()),
                "--file-ignore" => asked.ignore.push(words.value(flag)?),
                "--dockerfile-path-hint" => drop(words.value(flag)?),
                "--set-build-env" => words.pair(flag, &mut asked.build_envs)?,
                "--set-runtime-env" => words.pair(flag, &mut asked.runtime_envs)?,
                "--start-cmd" => asked.start_cmd = Some(words.value(flag)?),
                "--ready-port" => timing.port = Some(words.number(flag)?),
                "--ready-url" => timing.url = Some(words.value(flag)?),
                "--ready-cmd" => timing.command = Some(words.value(flag)?),
                "--ready-file" => {
                    let path = words.value(flag)?;
                    timing.command = Some(format!("test -e {}", quoted(&path)));
                }
                "--ready-process" => {
                    let name = words.value(flag)?;
                    timing.command = Some(format!("pgrep -f {} > /dev/null", quoted(&name)));
                }
                "--ready-timeout-ms" => timing.pause = Some(words.number(flag)?),
                "--ready-timeout-secs" => timing.timeout = Some(words.number(flag)?),
                "--ready-interval-ms" => timing.interval = Some(words.number(flag)?),
                "--ready-startup-grace-secs" => timing.grace = Some(words.number(flag)?),
                "--build-secret" => asked.secrets[0].push(words.value(flag)?),
                "--build-secret-env" => asked.secrets[1].push(words.value(flag)?),
                "--build-secret-file" => asked.secrets[2].push(words.value(flag)?),
                "--registry-username" => registry[0] = Some(words.value(flag)?),
                "--registry-password" => registry[1] = Some(words.value(flag)?),
                "--cpu-count" => asked.vcpus = Some(words.number(flag)?),
                "--memory-mb" => asked.memory_mib = Some(words.number(flag)?),
                "--backend" => drop(words.value(flag)?),
                "--internet-access" => asked.no_internet = false,
                "--no-internet-access" => asked.no_internet = true,
                "--isolation" => {
                    let word = words.value(flag)?;
                    asked.isolation = Some(Isolation::parse(&word).ok_or_else(|| {
                        CliError::usage("--isolation: native, gvisor, microvm or strongest")
                    })?);
                }
                "--skip-cache" => asked.skip_cache = true,
                "--background" => asked.background = true,
                "--json" => *json = true,
                "--log-format" => {
                    let text = words.value(flag)?;
                    asked.log_format = clap::ValueEnum::from_str(&text, false)
                        .map_err(|_| CliError::usage("--log-format: text, jsonl or quiet"))?;
                }
                other => {
                    return Err(CliError::usage(format!("unknown word {other}"))
                        .hint("nullspace template build --help lists all."));
                }
            }
        }
        if let (From::Base(base), Some(variant)) = (&mut asked.from, variant) {
            base.push_str(&format!("-{variant}"));
        }
        if let [Some(username), Some(password)] = registry {
            asked.auth = Some(RegistryAuth::Basic {
                username: Secret(username),
                password: Secret(password),
            });
        }
        asked.readiness = timing.readiness()?;
        for step in &asked.steps {
            match step {
                BuildStep::Workdir { path } => asked.workdir = Some(path.clone()),
                BuildStep::User { user } => asked.user = Some(user.clone()),
                BuildStep::Copy(item) if item.dst.is_empty() => {
                    return Err(CliError::usage("--copy-src: needs --copy-dst"));
                }
                _ => {}
            }
        }
        if asked.from == From::Nothing {
            return Err(CliError::usage("nothing to start from")
                .hint("Begin with --from-template base, --from-image … or --from-dockerfile …"));
        }
        Ok(asked)
    }
}

#[derive(Default)]
struct Timing {
    port: Option<u16>,
    url: Option<String>,
    command: Option<String>,
    pause: Option<u64>,
    timeout: Option<u64>,
    interval: Option<u64>,
    grace: Option<u64>,
}

impl Timing {
    fn readiness(self) -> Result<Option<Readiness>, CliError> {
        let (timeout_secs, interval_ms, startup_grace_secs) = (
            self.timeout.unwrap_or(30),
            self.interval.unwrap_or(500),
            self.grace.unwrap_or(2),
        );
        if let Some(url) = self.url {
            let wrong = || {
                CliError::usage(format!(
                    "--ready-url {url}: must be http://localhost:PORT/…"
                ))
            };
            let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let (_, port) = host.split_once(':').ok_or_else(wrong)?;
            return Ok(Some(Readiness::Http {
                port: port.parse().map_err(|_| wrong())?,
                path: format!("/{path}"),
                timeout_secs,
                interval_ms,
                startup_grace_secs,
            }));
        }
        if let Some(port) = self.port {
            return Ok(Some(Readiness::Tcp {
                port,
                timeout_secs,
                interval_ms,
                startup_grace_secs,
            }));
        }
        if let Some(command) = self.command {
            return Ok(Some(Readiness::Command {
                command,
                timeout_secs,
                interval_ms,
                startup_grace_secs,
            }));
        }
        Ok(self
            .pause
            .map(|timeout_ms| Readiness::Timeout { timeout_ms }))
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Reads a word that is about steps. Answers whether it was one.
fn step(flag: &str, words: &mut Words<'_>, steps: &mut Vec<BuildStep>) -> Result<bool, CliError> {
    match flag {
        "--run-cmd" => steps.push(BuildStep::Run {
            command: words.value(flag)?,
            user: None,
        }),
        "--apt-install" => steps.push(BuildStep::AptInstall {
            packages: packages(&words.value(flag)?),
        }),
        "--pip-install" => steps.push(BuildStep::PipInstall {
            packages: packages(&words.value(flag)?),
            g: None,
        }),
        "--npm-install" => steps.push(BuildStep::NpmInstall {
            packages: packages(&words.value(flag)?),
            g: None,
        }),
        "--bun-install" => steps.push(BuildStep::BunInstall {
            packages: packages(&words.value(flag)?),
            g: None,
        }),
        "--git-clone" => steps.push(BuildStep::GitClone {
            url: words.value(flag)?,
            path: "/workspace".into(),
            branch: None,
            depth: None,
        }),
        "--copy-src" => {
            let source = words.value(flag)?;
            match steps.last_mut() {
                Some(BuildStep::Copy(item)) if item.dst.is_empty() => item.sources.push(source),
                _ => steps.push(BuildStep::Copy(CopyItem {
                    sources: vec![source],
                    dst: String::new(),
                    user: None,
                    mode: None,
                    force_upload: false,
                })),
            }
        }
        "--remove" => steps.push(BuildStep::Remove {
            path: words.value(flag)?,
            recursive: false,
            force: false,
        }),
        "--rename-src" => steps.push(BuildStep::Rename {
            src: words.value(flag)?,
            dst: String::new(),
            force: false,
        }),
        "--make-dir" => steps.push(BuildStep::MakeDir {
            path: words.value(flag)?,
            mode: None,
        }),
        "--make-symlink-target" => steps.push(BuildStep::MakeSymlink {
            target: words.value(flag)?,
            path: String::new(),
        }),
        "--set-workdir" => steps.push(BuildStep::Workdir {
            path: words.value(flag)?,
        }),
        "--set-user" => steps.push(BuildStep::User {
            user: words.value(flag)?,
        }),
        _ => return of_step(flag, words, steps.last_mut()),
    }
    Ok(true)
}

/// Reads a word that belongs to the step before it.
fn of_step(
    flag: &str,
    words: &mut Words<'_>,
    step: Option<&mut BuildStep>,
) -> Result<bool, CliError> {
    match (flag, step) {
        ("--run-user", Some(BuildStep::Run { user, .. })) => *user = Some(words.value(flag)?),
        ("--pip-user-install", Some(BuildStep::PipInstall { g, .. })) => *g = Some(false),
        ("--npm-global", Some(BuildStep::NpmInstall { g, .. }))
        | ("--bun-global", Some(BuildStep::BunInstall { g, .. })) => *g = Some(true),
        ("--git-path", Some(BuildStep::GitClone { path, .. })) => *path = words.value(flag)?,
        ("--git-branch", Some(BuildStep::GitClone { branch, .. })) => {
            *branch = Some(words.value(flag)?);
        }
        ("--git-depth", Some(BuildStep::GitClone { depth, .. })) => {
            *depth = Some(words.number(flag)?);
        }
        ("--copy-dst", Some(BuildStep::Copy(item))) => item.dst = words.value(flag)?,
        ("--copy-user", Some(BuildStep::Copy(item))) => item.user = Some(words.value(flag)?),
        ("--copy-mode", Some(BuildStep::Copy(item))) => {
            item.mode = Some(Mode::Text(words.value(flag)?));
        }
        ("--copy-force-upload", Some(BuildStep::Copy(item))) => item.force_upload = true,
        ("--remove-recursive", Some(BuildStep::Remove { recursive, .. })) => *recursive = true,
        ("--remove-force", Some(BuildStep::Remove { force, .. }))
        | ("--rename-force", Some(BuildStep::Rename { force, .. })) => *force = true,
        ("--rename-dst", Some(BuildStep::Rename { dst, .. })) => *dst = words.value(flag)?,
        ("--make-dir-mode", Some(BuildStep::MakeDir { mode, .. })) => {
            *mode = Some(Mode::Text(words.value(flag)?));
        }
        ("--make-symlink-path", Some(BuildStep::MakeSymlink { path, .. })) => {
            *path = words.value(flag)?;
        }
        (flag, _) => {
            let to = [
                ("--run-user", "--run-cmd"),
                ("--pip-user-install", "--pip-install"),
                ("--npm-global", "--npm-install"),
                ("--bun-global", "--bun-install"),
                ("--git-", "--git-clone"),
                ("--copy-", "--copy-src"),
                ("--remove-", "--remove"),
                ("--rename-", "--rename-src"),
                ("--make-dir-mode", "--make-dir"),
                ("--make-symlink-path", "--make-symlink-target"),
            ];
            return match to.iter().find(|(of, _)| flag.starts_with(of)) {
                Some((_, to)) => Err(alone(flag, to)),
                None => Ok(false),
            };
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Asked, CliError> {
        let args = Args {
            args: line.split_whitespace().map(str::to_owned).collect(),
        };
        args.read(&mut false)
    }

    #[test]
    fn steps_keep_their_order() {
        let line = "--from-template base --run-cmd one --run-user me --copy-src a --copy-src b --copy-dst /x/ \
                    --apt-install jq,curl --set-user me --ready-port 80 --start-cmd serve --name n:v";
        let asked = read(line).expect(line);
        assert_eq!(asked.from, From::Base("base".into()));
        assert_eq!(asked.steps.len(), 4);
        assert!(matches!(&asked.steps[0], BuildStep::Run { user: Some(user), .. } if user == "me"));
        assert!(matches!(&asked.steps[1], BuildStep::Copy(item) if item.sources.len() == 2));
        assert!(matches!(
            &asked.readiness,
            Some(Readiness::Tcp { port: 80, .. })
        ));
        assert_eq!(asked.user.as_deref(), Some("me"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, word) in [
            ("--run-cmd x", "start from"),
            ("--from-template base --run-user x", "--run-cmd"),
            ("--from-template base --copy-src x", "--copy-dst"),
            ("--from-template base --flag", "--flag"),
            ("--from-template base --cpu-count x", "--cpu-count"),
            ("--from-template base --name", "--name"),
        ] {
            let error = read(line).expect_err(line);
            let text = format!("{} {}", error.message, error.hint.unwrap_or_default());
            assert!(text.contains(word), "{line}: {text}");
        }
    }
}
