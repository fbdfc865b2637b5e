//! What a build does, whether it was asked for in steps or as a Dockerfile: stages of instructions.

use nullspace_api::{
    template::OciHealthcheck,
    template_build::{BuildStep, CopyItem},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// What a build does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Program {
    /// The target is the last one.
    pub(super) stages: Vec<Stage>,
    /// What may not be what was meant.
    pub(super) warnings: Vec<String>,
    /// Instructions that are only kept to be shown.
    pub(super) ignored: Vec<String>,
}

/// A tree that is made from another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    /// Its name, for other stages.
    pub(super) name: Option<String>,
    /// What it starts from.
    pub(super) from: From,
    /// What is done to it.
    pub(super) instructions: Vec<Instruction>,
    /// Whether variables in instructions are replaced.
    pub(super) expands: bool,
}

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// A template or an image.
    Reference(String),
    /// An earlier stage.
    Stage(usize),
    /// Nothing.
    Scratch,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    /// As people wrote it, or could have.
    pub(super) text: String,
    /// Where, in a Dockerfile.
    pub(super) line: Option<u32>,
    /// What.
    pub(super) action: Action,
}

/// What an instruction does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Run something; what it writes is a layer.
    Run(Run),
    /// Copy something; that is a layer.
    Copy(Copy),
    /// Where later instructions and machines start.
    Workdir(String),
    /// Whom they run as.
    User(String),
    /// Variables of later instructions and of machines.
    Env(Vec<(String, String)>),
    /// A variable of later instructions, and its value unless the build has one for it.
    Arg(String, Option<String>),
    /// What runs command lines.
    Shell(Vec<String>),
    /// What runs in machines, or the arguments of [`Action::Entrypoint`].
    Cmd(Command),
    /// What runs in machines.
    Entrypoint(Command),
    /// Kept to be shown.
    Label(Vec<(String, String)>),
    /// Kept to be shown.
    Expose(Vec<String>),
    /// Kept to be shown.
    Volume(Vec<String>),
    /// Kept to be shown.
    Healthcheck(Box<OciHealthcheck>),
    /// The layers of later instructions are made again.
    SkipCache,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// A line for the shell.
    Line(String),
    /// A program and its arguments.
    Words(Vec<String>),
}

/// Something to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// What.
    pub(super) command: Command,
    /// As whom, if not as the user of the stage.
    pub(super) user: Option<String>,
    /// Secrets that it can read.
    pub(super) secrets: Vec<SecretUse>,
    /// Whether every secret of the build is there for it, at `/run/secrets/<id>`.
    pub(super) all_secrets: bool,
    /// Directories that are in no layer.
    pub(super) caches: Vec<CacheUse>,
}

/// A directory that a command has for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct CacheUse {
    /// Where.
    pub(super) target: String,
    /// Permission bits.
    pub(super) mode: u32,
    /// Whom it belongs to.
    pub(super) uid: u32,
    /// And which group.
    pub(super) gid: u32,
}

/// A secret that a command can read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SecretUse {
    /// Which.
    pub(super) id: String,
    /// The file it is in.
    pub(super) target: Option<String>,
    /// The variable it is in.
    pub(super) env: Option<String>,
    /// Whether it has to be there.
    pub(super) required: bool,
    /// Permission bits of the file.
    pub(super) mode: Option<u32>,
    /// Whom the file belongs to.
    pub(super) uid: Option<u32>,
}

/// Files to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// From where.
    pub(super) from: CopyFrom,
    /// Which.
    pub(super) sources: Vec<String>,
    /// Files that are in the instruction itself.
    pub(super) inline: Vec<Inline>,
    /// To where.
    pub(super) to: String,
    /// Whom they belong to.
    pub(super) owner: Option<String>,
    /// Their permission bits.
    pub(super) mode: Option<u32>,
    /// Whether archives are unpacked.
    pub(super) unpacks: bool,
    /// Whether the layer is made again.
    pub(super) force: bool,
}

/// A file that is in an instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Inline {
    /// Its name, if the target has none.
    pub(super) name: String,
    /// Its text.
    pub(super) content: String,
    /// Whether variables in it are replaced.
    pub(super) expands: bool,
}

/// Where files are copied from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CopyFrom {
    /// The build context.
    Context,
    /// An earlier stage.
    Stage(usize),
    /// A template or an image.
    Reference(String),
}

impl Action {
    /// Whether it makes a layer.
    #[must_use]
    pub(super) fn is_step(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Copy(_) | Self::Workdir(_))
    }

    /// As a plan shows it: an object with one key.
    #[must_use]
    pub(super) fn shown(&self, text: &str) -> Value {
        match self {
            Self::Run(_) => json!({"Run": text}),
            Self::Copy(copy) if copy.unpacks => json!({"Add": text}),
            Self::Copy(_) => json!({"Copy": text}),
            Self::Workdir(path) => json!({"Workdir": path}),
            Self::User(user) => json!({"User": user}),
            Self::Env(_) => json!({"Env": text}),
            Self::Arg(name, _) => json!({"Arg": name}),
            Self::Shell(words) => json!({"Shell": words}),
            Self::Cmd(_) => json!({"Cmd": text}),
            Self::Entrypoint(_) => json!({"Entrypoint": text}),
            Self::Label(_) => json!({"Label": text}),
            Self::Expose(ports) => json!({"Expose": ports}),
            Self::Volume(paths) => json!({"Volume": paths}),
            Self::Healthcheck(_) => json!({"Healthcheck": text}),
            Self::SkipCache => json!({"SkipCache": true}),
        }
    }
}

impl Program {
    /// A program of one stage.
    ///
    /// # Errors
    /// `invalid_request` with the step.
    pub(super) fn of_steps(base: &str, steps: &[BuildStep]) -> Result<Self> {
        let mut instructions = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            instructions.extend(
                of_step(step)
                    .map_err(|error| error.with_message_prefix(&format!("steps[{number}]: ")))?,
            );
        }
        Ok(Self {
            stages: vec![Stage {
                name: None,
                from: From::Reference(base.to_owned()),
                instructions,
                expands: false,
            }],
            ..Self::default()
        })
    }
}

/// A word of a shell command, whatever is in it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%_+=:,./-".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

fn words(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    words.join(" ")
}

fn run(line: String, user: Option<&str>) -> Action {
    Action::Run(Run {
        command: Command::Line(line),
        user: user.map(str::to_owned),
        secrets: Vec::new(),
        all_secrets: true,
        caches: Vec::new(),
    })
}

fn of_step(step: &BuildStep) -> Result<Vec<Instruction>> {
    const ROOT: Option<&str> = Some("root");
    let packages = |packages: &[String]| match packages {
        [] => Err(Error::invalid("packages: at least one is needed")),
        // An option would be taken for one.
        _ if packages
            .iter()
            .any(|p| p.is_empty() || p.starts_with('-') || p.contains('\0')) =>
        {
            Err(Error::invalid(
                "packages: a name is empty or begins with `-`",
            ))
        }
        _ => Ok(words(packages)),
    };
    let some = |field: &str, value: &str| match value {
        "" => Err(Error::invalid(format!("{field}: must not be empty"))),
        value if value.contains('\0') => Err(Error::invalid(format!("{field}: holds a NUL byte"))),
        value => Ok(quoted(value)),
    };
    let action = match step {
        BuildStep::AptInstall { packages: list } => {
            let list = packages(list)?;
            run(
                format!(
                    "export DEBIAN_FRONTEND=noninteractive; apt-get update && apt-get install -y \
                     --no-install-recommends -- {list} && rm -rf /var/lib/apt/lists/*"
                ),
                ROOT,
            )
        }
        BuildStep::PipInstall { packages: list, g } => {
            let list = packages(list)?;
            match g {
                Some(false) => run(format!("pip install --no-cache-dir --user -- {list}"), None),
                _ => run(format!("pip install --no-cache-dir -- {list}"), ROOT),
            }
        }
        BuildStep::NpmInstall { packages: list, g } => {
            let list = packages(list)?;
            match g {
                Some(true) => run(format!("npm install -g -- {list}"), ROOT),
                _ => run(format!("npm install -- {list}"), None),
            }
        }
        BuildStep::BunInstall { packages: list, g } => {
            let list = packages(list)?;
            match g {
                Some(true) => run(format!("bun add --global {list}"), ROOT),
                _ => run(format!("bun add {list}"), None),
            }
        }
        BuildStep::Run { command, user } => {
            some("command", command)?;
            run(command.clone(), user.as_deref())
        }
        BuildStep::Workdir { path } => {
            some("path", path)?;
            Action::Workdir(path.clone())
        }
        BuildStep::User { user } => {
            some("user", user)?;
            Action::User(user.clone())
        }
        BuildStep::Copy(item) => copy(item)?,
        BuildStep::CopyItems { items } => {
            if items.is_empty() {
                return Err(Error::invalid("items: at least one is needed"));
            }
            let items = items.iter().map(|item| Ok(instruction(copy(item)?)));
            return items.collect();
        }
        BuildStep::GitClone {
            url,
            path,
            branch,
            depth,
        } => {
            let (url, path) = (some("url", url)?, some("path", path)?);
            let branch = match branch {
                Some(branch) => format!(" --branch {}", some("branch", branch)?),
                None => String::new(),
            };
            let depth = depth.map_or(String::new(), |depth| format!(" --depth {depth}"));
            run(format!("git clone{branch}{depth} -- {url} {path}"), None)
        }
        BuildStep::Remove {
            path,
            recursive,
            force,
        } => {
            let path = some("path", path)?;
            let options = match (recursive, force) {
                (true, true) => " -rf",
                (true, false) => " -r",
                (false, true) => " -f",
                (false, false) => "",
            };
            run(format!("rm{options} -- {path}"), None)
        }
        BuildStep::Rename { src, dst, force } => {
            let (src, dst) = (some("src", src)?, some("dst", dst)?);
            match force {
                true => run(format!("mv -f -- {src} {dst}"), None),
                false => run(
                    format!(
                        "if [ -e {dst} ] && [ ! -d {dst} ]; then echo {dst}: is there already >&2; exit 1; fi; \
                         mv -- {src} {dst}"
                    ),
                    None,
                ),
            }
        }
        BuildStep::MakeDir { path, mode } => {
            let path = some("path", path)?;
            match mode {
                None => run(format!("mkdir -p -- {path}"), None),
                Some(mode) => {
                    let bits = bits(mode)?;
                    run(
                        format!("mkdir -p -- {path} && chmod {bits:04o} -- {path}"),
                        None,
                    )
                }
            }
        }
        BuildStep::MakeSymlink { target, path } => {
            let (target, path) = (some("target", target)?, some("path", path)?);
            run(format!("ln -s -- {target} {path}"), None)
        }
        BuildStep::SkipCache {} => Action::SkipCache,
    };
    Ok(vec![instruction(action)])
}

fn bits(mode: &nullspace_api::template::Mode) -> Result<u32> {
    mode.bits()
        .ok_or_else(|| Error::invalid("mode: must be octal digits up to 7777"))
}

fn copy(item: &CopyItem) -> Result<Action> {
    if item.sources.is_empty() || item.dst.is_empty() || item.dst.contains('\0') {
        return Err(Error::invalid("copy: needs sources and a dst"));
    }
    Ok(Action::Copy(Copy {
        from: CopyFrom::Context,
        sources: item.sources.clone(),
        inline: Vec::new(),
        to: item.dst.clone(),
        owner: item.user.clone(),
        mode: item.mode.as_ref().map(bits).transpose()?,
        unpacks: false,
        force: item.force_upload,
    }))
}

fn instruction(action: Action) -> Instruction {
    let text = match &action {
        Action::Run(run) => match &run.command {
            Command::Line(line) => line.clone(),
            Command::Words(list) => words(list),
        },
        Action::Copy(copy) => format!("copy {} to {}", copy.sources.len(), copy.to),
        Action::Workdir(path) => format!("workdir {path}"),
        Action::User(user) => format!("user {user}"),
        _ => "skip_cache".to_owned(),
    };
    Instruction {
        text,
        line: None,
        action,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(quoted("a/b-1.2"), "a/b-1.2");
        assert_eq!(quoted("it's; rm -rf /"), r"'it'\''s; rm -rf /'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn options_are_no_packages() {
        let step = BuildStep::AptInstall {
            packages: vec!["-oX=y".into()],
        };
        assert!(Program::of_steps("base", &[step]).is_err());
    }
}
