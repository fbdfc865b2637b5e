//! From instructions to stages.

use std::collections::{BTreeMap, BTreeSet};

use nullspace_api::template::OciHealthcheck;

use super::{
    Wrong,
    flags::{self, Mount},
    lines::Line,
    words,
};
use crate::app::template::program::{
    Action, Command, Copy, CopyFrom, From, Inline, Instruction, Program, Run, Stage,
};

/// Stages, and instructions of one, at most: no build may have more steps.
const MOST: usize = 500;

struct Reader<'a> {
    given: &'a BTreeMap<String, String>,
    /// `ARG`s before the first stage.
    global: BTreeMap<String, Option<String>>,
    asked: BTreeSet<String>,
    /// Bytes of words whose variables were replaced.
    taken: usize,
    program: Program,
}

/// Reads the stages up to the one that is wanted.
pub(super) fn read(
    lines: &[Line],
    given: &BTreeMap<String, String>,
    target: Option<&str>,
) -> Result<Program, Wrong> {
    let mut reader = Reader {
        given,
        global: BTreeMap::new(),
        asked: BTreeSet::new(),
        taken: 0,
        program: Program::default(),
    };
    for line in lines {
        reader.line(line)?;
    }
    let Reader {
        asked, mut program, ..
    } = reader;
    let end = lines.last().map_or(1, |line| line.number);
    if program.stages.is_empty() {
        return Err(Wrong::at(end, "no FROM instruction"));
    }
    if let Some(target) = target {
        let named = program.stages.iter().position(|stage| {
            (stage.name.as_ref()).is_some_and(|name| name.eq_ignore_ascii_case(target))
        });
        let numbered = || target.parse().ok().filter(|n| *n < program.stages.len());
        let wanted = named.or_else(numbered);
        let wanted = wanted
            .ok_or_else(|| Wrong::at(end, format!("build_target: there is no stage {target:?}")))?;
        program.stages.truncate(wanted + 1);
    }
    for name in given.keys().filter(|name| !asked.contains(*name)) {
        let warning = format!("build_args: no ARG asks for {name}");
        program.warnings.push(warning);
    }
    Ok(program)
}

/// What builders say about themselves and their target.
fn predefined(name: &str) -> Option<String> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    match name {
        "TARGETARCH" | "BUILDARCH" => Some(arch.to_owned()),
        "TARGETOS" | "BUILDOS" => Some("linux".to_owned()),
        "TARGETPLATFORM" | "BUILDPLATFORM" => Some(format!("linux/{arch}")),
        _ => None,
    }
}

impl Reader<'_> {
    fn line(&mut self, line: &Line) -> Result<(), Wrong> {
        let wrong = |why: &str| Wrong::at(line.number, format!("{}: {why}", line.keyword));
        if line.keyword == "FROM" {
            return self.from(line);
        }
        if line.keyword == "ARG" && self.program.stages.is_empty() {
            for word in words::split(&line.rest) {
                let (name, default) = match word.split_once('=') {
                    Some((name, default)) => (name, Some(self.global_word(line, default)?)),
                    None => (word.as_str(), None),
                };
                self.asked.insert(name.to_owned());
                let value = self.given.get(name).cloned().or(default);
                self.global.insert(name.to_owned(), value);
            }
            return Ok(());
        }
        if self.program.stages.is_empty() {
            return Err(wrong("comes before the first FROM"));
        }
        if line.rest.is_empty() {
            return Err(wrong("needs something after it"));
        }
        let actions = match line.keyword.as_str() {
            "RUN" => vec![self.run(line)?],
            "COPY" | "ADD" => self.copy(line)?,
            "ENV" => vec![Action::Env(pairs(line)?)],
            "LABEL" => vec![Action::Label(pairs(line)?)],
            "ARG" => self.args(line)?,
            "WORKDIR" => vec![Action::Workdir(line.rest.clone())],
            "USER" => vec![Action::User(line.rest.clone())],
            "SHELL" => match json(&line.rest) {
                Some(words) if !words.is_empty() => vec![Action::Shell(words)],
                _ => return Err(wrong("must be a list, as [\"/bin/bash\", \"-c\"]")),
            },
            "CMD" => vec![Action::Cmd(command(&line.rest))],
            "ENTRYPOINT" => vec![Action::Entrypoint(command(&line.rest))],
            "EXPOSE" => vec![Action::Expose(words::split(&line.rest))],
            "VOLUME" => vec![Action::Volume(listed(&line.rest))],
            "HEALTHCHECK" => vec![healthcheck(line)?],
            "STOPSIGNAL" | "MAINTAINER" => {
                self.ignored(line);
                return Ok(());
            }
            "ONBUILD" => return Err(wrong("this server cannot do this")),
            _ => {
                return Err(Wrong::at(
                    line.number,
                    format!("unknown instruction {}", line.keyword),
                ));
            }
        };
        if matches!(
            line.keyword.as_str(),
            "EXPOSE" | "VOLUME" | "HEALTHCHECK" | "LABEL"
        ) {
            // Kept to be shown; nothing else comes of them.
            self.program.ignored.push(line.keyword.clone());
        }
        let first = line
            .documents
            .first()
            .map(|document| document.name.as_str());
        let text = match first {
            Some(_) if line.keyword == "RUN" && line.rest.starts_with("<<") => format!(
                "RUN {}",
                line.documents[0].content.lines().next().unwrap_or_default()
            ),
            _ => format!("{} {}", line.keyword, line.rest),
        };
        if let Some(stage) = self.program.stages.last_mut() {
            if stage.instructions.len() + actions.len() > MOST {
                let why = format!("over {MOST} instructions in a stage");
                return Err(Wrong::at(line.number, why));
            }
            for action in actions {
                stage.instructions.push(Instruction {
                    text: text.clone(),
                    line: Some(line.number),
                    action,
                });
            }
        }
        Ok(())
    }

    fn ignored(&mut self, line: &Line) {
        self.program.ignored.push(line.keyword.clone());
        let warning = format!("line {}: {} is ignored", line.number, line.keyword);
        self.program.warnings.push(warning);
    }

    /// So many more bytes are put in.
    fn take(&mut self, line: &Line, bytes: usize) -> Result<(), Wrong> {
        self.taken = self.taken.saturating_add(bytes);
        match self.taken > words::MOST {
            true => Err(Wrong::at(
                line.number,
                format!("variables come to over {} bytes", words::MOST),
            )),
            false => Ok(()),
        }
    }

    /// A word in front of the stages.
    fn global_word(&mut self, line: &Line, word: &str) -> Result<String, Wrong> {
        let look_up = |name: &str| {
            let value = self.global.get(name).cloned().flatten();
            value.or_else(|| predefined(name))
        };
        let word = words::expand(word, &look_up).map_err(|why| Wrong::at(line.number, why))?;
        self.take(line, word.len())?;
        Ok(word)
    }

    fn from(&mut self, line: &Line) -> Result<(), Wrong> {
        let (flags, rest) = flags::take(line);
        for (name, value) in &flags {
            let value = self.global_word(line, value)?;
            let own = predefined("TARGETPLATFORM").unwrap_or_default();
            if name != "platform" {
                return Err(flags::unknown(line, name));
            }
            if value != own && !value.is_empty() {
                return Err(Wrong::at(
                    line.number,
                    format!("--platform={value}: this server's machines are {own}"),
                ));
            }
        }
        let words = words::split(rest);
        let (base, name) = match words.as_slice() {
            [base] => (base, None),
            [base, word, name] if word.eq_ignore_ascii_case("as") => {
                (base, Some(name.to_ascii_lowercase()))
            }
            _ => return Err(Wrong::at(line.number, "FROM: must be FROM image [AS name]")),
        };
        let base = self.global_word(line, base)?;
        if base.is_empty() {
            return Err(Wrong::at(line.number, "FROM: the image's name is empty"));
        }
        if let Some(name) = &name
            && self.stage(name).is_some()
        {
            return Err(Wrong::at(
                line.number,
                format!("there is a stage {name} already"),
            ));
        }
        let from = match (base.as_str(), self.stage(&base)) {
            ("scratch", _) => From::Scratch,
            (_, Some(number)) => From::Stage(number),
            _ => From::Reference(base),
        };
        if self.program.stages.len() == MOST {
            return Err(Wrong::at(line.number, format!("over {MOST} stages")));
        }
        self.program.stages.push(Stage {
            name,
            from,
            instructions: Vec::new(),
            expands: true,
        });
        Ok(())
    }

    fn stage(&self, name: &str) -> Option<usize> {
        let named = |stage: &Stage| {
            (stage.name.as_ref()).is_some_and(|known| known.eq_ignore_ascii_case(name))
        };
        self.program.stages.iter().position(named)
    }

    fn args(&mut self, line: &Line) -> Result<Vec<Action>, Wrong> {
        let mut found = Vec::new();
        for word in words::split(&line.rest) {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name.to_owned(), Some(default.to_owned())),
                None => (word, None),
            };
            // One without a value of its own has that from before the stages.
            let inherited = || {
                let global = self.global.get(&name).cloned().flatten();
                global
                    .or_else(|| predefined(&name))
                    .map(|value| words::literal(&value))
            };
            let default = default.or_else(inherited);
            self.take(line, default.as_ref().map_or(0, String::len))?;
            self.asked.insert(name.clone());
            found.push(Action::Arg(name, default));
        }
        Ok(found)
    }

    fn run(&mut self, line: &Line) -> Result<Action, Wrong> {
        let (flags, rest) = flags::take(line);
        let (mut secrets, mut caches) = (Vec::new(), Vec::new());
        for (name, value) in &flags {
            match (name.as_str(), value.as_str()) {
                ("mount", value) => match flags::mount(line, value)? {
                    Mount::Secret(usage) => secrets.push(usage),
                    Mount::Cache(usage) => {
                        self.program.warnings.push(format!(
                            "line {}: a cache mount is empty at first and gone after its step",
                            line.number
                        ));
                        caches.push(usage);
                    }
                },
                ("network", "default") => {}
                _ => return Err(flags::unknown(line, name)),
            }
        }
        let command = match line.documents.as_slice() {
            [] => command(rest),
            [only] if is_bare(rest) => Command::Line(script(&only.content)),
            documents => {
                // The shell reads them as they are.
                let mut text = format!("{rest}\n");
                for document in documents {
                    text.push_str(&document.content);
                    text.push_str(&document.name);
                    text.push('\n');
                }
                Command::Line(text)
            }
        };
        Ok(Action::Run(Run {
            command,
            user: None,
            secrets,
            all_secrets: false,
            caches,
        }))
    }

    fn copy(&mut self, line: &Line) -> Result<Vec<Action>, Wrong> {
        let (flags, rest) = flags::take(line);
        let is_add = line.keyword == "ADD";
        let mut copy = Copy {
            from: CopyFrom::Context,
            sources: Vec::new(),
            inline: Vec::new(),
            to: String::new(),
            owner: None,
            mode: None,
            unpacks: is_add,
            force: false,
        };
        for (name, value) in flags {
            match name.as_str() {
                "chown" => copy.owner = Some(value),
                "chmod" => copy.mode = Some(flags::mode(line, &value)?),
                "link" => {}
                "from" if !is_add => {
                    let value = self.global_word(line, &value)?;
                    let numbered = || {
                        let current = self.program.stages.len() - 1;
                        value
                            .parse::<usize>()
                            .ok()
                            .filter(|number| *number < current)
                    };
                    copy.from = match self.stage(&value).or_else(numbered) {
                        Some(number) if number + 1 == self.program.stages.len() => {
                            return Err(Wrong::at(line.number, "COPY --from: names its own stage"));
                        }
                        Some(number) => CopyFrom::Stage(number),
                        None => CopyFrom::Reference(value),
                    };
                }
                _ => return Err(flags::unknown(line, &name)),
            }
        }
        let mut words = match json(rest) {
            Some(words) => words.iter().map(|word| words::escaped(word)).collect(),
            None => words::split(rest),
        };
        copy.to = match words.pop() {
            Some(to) if !words.is_empty() => to,
            _ => {
                return Err(Wrong::at(
                    line.number,
                    format!("{}: needs a source and a target", line.keyword),
                ));
            }
        };
        for word in words {
            if let Some(name) = word.strip_prefix("<<") {
                let name = name.trim_start_matches('-').trim_matches(['"', '\'']);
                let document = line.documents.iter().find(|document| document.name == name);
                copy.inline.extend(document.map(|document| Inline {
                    name: document.name.clone(),
                    content: document.content.clone(),
                    expands: document.expands,
                }));
                continue;
            }
            if is_add && (word.contains("://") || word.starts_with("git@")) {
                return Err(Wrong::at(
                    line.number,
                    "ADD of a URL: this server cannot do this; use RUN with curl or git",
                ));
            }
            copy.sources.push(word);
        }
        Ok(vec![Action::Copy(copy)])
    }
}

/// A list of strings in brackets.
fn json(text: &str) -> Option<Vec<String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

fn command(text: &str) -> Command {
    match json(text) {
        Some(words) if !words.is_empty() => Command::Words(words),
        _ => Command::Line(text.to_owned()),
    }
}

fn listed(text: &str) -> Vec<String> {
    match json(text) {
        Some(words) => words.iter().map(|word| words::escaped(word)).collect(),
        None => words::split(text),
    }
}

/// Whether nothing but a here-document is to be run.
fn is_bare(rest: &str) -> bool {
    rest.starts_with("<<") && !rest.contains(char::is_whitespace)
}

/// What a here-document is run as: by the shell, or by the program that its first line names.
fn script(content: &str) -> String {
    if !content.starts_with("#!") {
        return content.to_owned();
    }
    const END: &str = "NULLSPACE_END_OF_SCRIPT";
    format!(
        "script=$(mktemp) && cat > \"$script\" <<'{END}'\n{content}{END}\n\
         chmod +x \"$script\" && \"$script\"; code=$?; rm -f \"$script\"; exit $code"
    )
}

/// `NAME=value …`, or `NAME value`.
fn pairs(line: &Line) -> Result<Vec<(String, String)>, Wrong> {
    let words = words::split(&line.rest);
    let unquoted = |name: &str| words::expand(name, &|_| None).unwrap_or_else(|_| name.to_owned());
    match words.first() {
        Some(first) if !first.contains('=') => {
            let (name, value) = line.rest.split_once(char::is_whitespace).ok_or_else(|| {
                Wrong::at(line.number, format!("{}: must be NAME=value", line.keyword))
            })?;
            Ok(vec![(unquoted(name), value.trim().to_owned())])
        }
        _ => words
            .iter()
            .map(|word| match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok((unquoted(name), value.to_owned())),
                _ => Err(Wrong::at(
                    line.number,
                    format!("{}: {word:?} is not NAME=value", line.keyword),
                )),
            })
            .collect(),
    }
}

fn healthcheck(line: &Line) -> Result<Action, Wrong> {
    let (flags, rest) = flags::take(line);
    let mut check = OciHealthcheck::default();
    for (name, value) in flags {
        let nanoseconds = || {
            duration(&value)
                .ok_or_else(|| Wrong::at(line.number, format!("--{name}={value}: is no duration")))
        };
        match name.as_str() {
            "interval" => check.interval_ns = Some(nanoseconds()?),
            "timeout" => check.timeout_ns = Some(nanoseconds()?),
            "start-period" => check.start_period_ns = Some(nanoseconds()?),
            "start-interval" => {}
            "retries" => {
                check.retries = Some(value.parse().map_err(|_| {
                    Wrong::at(line.number, format!("--retries={value}: is no number"))
                })?);
            }
            _ => return Err(flags::unknown(line, &name)),
        }
    }
    let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    check.test = match (kind.to_ascii_uppercase().as_str(), command(rest.trim())) {
        ("NONE", _) => vec!["NONE".into()],
        ("CMD", Command::Words(words)) => std::iter::once("CMD".to_owned()).chain(words).collect(),
        ("CMD", Command::Line(line)) if !line.is_empty() => vec!["CMD-SHELL".into(), line],
        _ => return Err(Wrong::at(line.number, "HEALTHCHECK: must be NONE or CMD …")),
    };
    Ok(Action::Healthcheck(Box::new(check)))
}

/// `1m30s` in nanoseconds.
fn duration(text: &str) -> Option<i64> {
    let mut total = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |at| end + at);
        let unit = match &rest[end..unit_end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    (total > 0.0).then_some(total as i64)
}
