//! What instructions mean for what comes after them.

use std::collections::BTreeMap;

use nullspace_protocol::UnpackQuery;

use super::{Bypass, End, Worker, of_machine};
use crate::app::{
    machine,
    template::{
        artifact::Artifact,
        definition, dockerfile,
        layer::key,
        program::{Action, Command, From, Instruction, quoted},
        source,
    },
};

/// An archive with nothing in it.
const EMPTY_TAR: [u8; 1024] = [0; 1024];

/// Variables, ports or volumes that a template may have.
const MANY: usize = 4096;

/// Where a stage stands.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) artifact: Artifact,
    /// `ARG`s that are in force.
    args: BTreeMap<String, String>,
    shell: Option<Vec<String>>,
    cmd: Option<Command>,
    entrypoint: Option<Command>,
    /// Whether variables in instructions are replaced.
    expands: bool,
    /// Bytes of words in which they were.
    taken: usize,
}

impl State {
    /// The start of a stage, and what runs its lines if that is not the usual shell.
    pub(super) fn over(artifact: Artifact, shell: Option<Vec<String>>) -> Self {
        Self {
            artifact,
            shell,
            ..Self::default()
        }
    }

    /// What runs in machines, by the words of a Dockerfile. An image's own command does not count; its entry point does
    /// for a `CMD` that is written above it.
    pub(super) fn start_cmd(&self) -> Option<String> {
        let line = |command: &Command| match command {
            Command::Line(line) => line.clone(),
            Command::Words(words) => {
                let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
                words.join(" ")
            }
        };
        let below = Some(&self.artifact.oci.entrypoint)
            .filter(|words| self.cmd.is_some() && !words.is_empty())
            .map(|words| Command::Words(words.clone()));
        match (self.entrypoint.as_ref().or(below.as_ref()), &self.cmd) {
            (None, None) => None,
            (None, Some(cmd)) => Some(line(cmd)),
            (Some(Command::Words(words)), Some(Command::Words(more))) => {
                Some(line(&Command::Words([words.as_slice(), more].concat())))
            }
            (Some(Command::Words(words)), Some(Command::Line(more))) => {
                Some(line(&Command::Words(
                    [
                        words.as_slice(),
                        &["/bin/sh".into(), "-c".into(), more.clone()],
                    ]
                    .concat(),
                )))
            }
            // A line as the entry point takes no arguments.
            (Some(entrypoint), _) => Some(line(entrypoint)),
        }
        .filter(|line| !line.trim().is_empty())
    }

    /// What a shell line is run by.
    pub(super) fn argv(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Words(words) => words.clone(),
            Command::Line(line) => {
                let usual = || vec!["/bin/sh".to_owned(), "-c".to_owned()];
                let mut argv = self.shell.clone().unwrap_or_else(usual);
                argv.push(line.clone());
                argv
            }
        }
    }

    /// Variables of steps besides those of the template.
    pub(super) fn envs(&self, worker: &Worker) -> BTreeMap<String, String> {
        let mut envs = self.args.clone();
        // What an instruction sets is stronger than an argument of the same name.
        envs.retain(|name, _| !self.artifact.env.iter().any(|(known, _)| known == name));
        envs.extend(definition::build_envs(&worker.job.request));
        envs
    }

    fn expand(&mut self, instruction: &Instruction, text: &str) -> Result<String, End> {
        if !self.expands {
            return Ok(text.to_owned());
        }
        let expanded = dockerfile::expand(text, &|name| self.look_up(name));
        self.take(instruction, expanded)
    }

    /// The same for a file that is written in the Dockerfile.
    fn expand_plain(&mut self, instruction: &Instruction, text: &str) -> Result<String, End> {
        let expanded = dockerfile::expand_plain(text, &|name| self.look_up(name));
        self.take(instruction, expanded)
    }

    /// So much of a stage's words is put in.
    fn take(
        &mut self,
        instruction: &Instruction,
        expanded: Result<String, String>,
    ) -> Result<String, End> {
        let expanded = expanded.map_err(|why| bad(instruction, &why))?;
        self.taken = self.taken.saturating_add(expanded.len());
        match self.taken > dockerfile::MOST {
            true => {
                let why = format!("variables come to over {} bytes", dockerfile::MOST);
                Err(bad(instruction, &why))
            }
            false => Ok(expanded),
        }
    }

    fn look_up(&self, name: &str) -> Option<String> {
        let env = self.artifact.env.iter().find(|(known, _)| known == name);
        env.map(|(_, value)| value)
            .or_else(|| self.args.get(name))
            .cloned()
    }
}

/// Lists are looked through for each new entry.
fn few(instruction: &Instruction, count: usize, what: &str) -> Result<(), End> {
    match count > MANY {
        true => Err(bad(instruction, &format!("over {MANY} {what}"))),
        false => Ok(()),
    }
}

fn bad(instruction: &Instruction, why: &str) -> End {
    let place = instruction
        .line
        .map_or(String::new(), |line| format!("line {line}: "));
    End::failed(
        "prepare",
        "invalid_instruction",
        format!("{place}{why}"),
        "correct the instruction and build again",
    )
}

impl Worker {
    /// Does what a stage says.
    pub(super) async fn stage(
        &mut self,
        number: usize,
        done: &[Option<State>],
    ) -> Result<State, End> {
        let job = self.job.clone();
        let stage = &job.program.stages[number];
        let mut state = match &stage.from {
            From::Stage(other) => done[*other].clone().unwrap_or_default(),
            From::Reference(text) => self.base(text).await?,
            From::Scratch => self.scratch()?,
        };
        state.args.clear();
        state.taken = 0;
        state.expands = stage.expands;
        for instruction in &stage.instructions {
            if instruction.action.is_step() {
                self.journal.at.step = Some(self.journal.at.step.unwrap_or(0) + 1);
                self.journal.message("step", instruction.text.clone());
                // Before the step's key is made: it is the same whether its layer is there or not.
                self.limit_depth(&mut state).await?;
            }
            self.instruct(&mut state, instruction, done).await?;
            self.remember(&state)?;
        }
        Ok(state)
    }

    /// Keeps layers of a build at work from being taken for garbage.
    fn remember(&mut self, state: &State) -> Result<(), End> {
        let mut layers: Vec<String> =
            serde_json::from_str(&self.journal.row.layers).unwrap_or_default();
        for id in &state.artifact.layers {
            if !layers.contains(id) {
                layers.push(id.clone());
            }
        }
        self.journal.row.layers = serde_json::to_string(&layers).unwrap_or_default();
        Ok(())
    }

    async fn instruct(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        done: &[Option<State>],
    ) -> Result<(), End> {
        match &instruction.action {
            Action::Run(run) => self.run_step(state, instruction, run).await?,
            Action::Copy(copy) => {
                let mut copy = copy.clone();
                for text in copy
                    .sources
                    .iter_mut()
                    .chain([&mut copy.to])
                    .chain(&mut copy.owner)
                {
                    *text = state.expand(instruction, text)?;
                }
                for file in copy.inline.iter_mut().filter(|file| file.expands) {
                    file.content = state.expand_plain(instruction, &file.content)?;
                }
                self.copy_step(state, instruction, &copy, done).await?;
            }
            Action::Workdir(path) => {
                let path = state.expand(instruction, path)?;
                let path = machine::absolute(&state.artifact.cwd, &path);
                let path = machine::check_cwd(&path).map_err(|e| bad(instruction, &e.message))?;
                self.workdir_step(state, instruction, &path).await?;
                state.artifact.cwd = path;
            }
            Action::User(user) => {
                let user = state.expand(instruction, user)?;
                state.artifact.user = match user.as_str() {
                    "root" | "0" => None,
                    _ => Some(user),
                };
            }
            Action::Env(pairs) => {
                // All of them see the variables as they were before.
                let expanded: Vec<(String, String)> = (pairs.iter())
                    .map(|(name, value)| Ok((name.clone(), state.expand(instruction, value)?)))
                    .collect::<Result<_, End>>()?;
                for (name, value) in expanded {
                    state.artifact.set_env(&name, value);
                    few(instruction, state.artifact.env.len(), "variables")?;
                }
            }
            Action::Arg(name, default) => {
                let given = (self.job.request.build_args.as_ref())
                    .and_then(|args| args.get(name))
                    .cloned();
                let value = match (given, default) {
                    (Some(given), _) => Some(given),
                    (None, Some(default)) => Some(state.expand(instruction, default)?),
                    (None, None) => None,
                };
                if let Some(value) = value {
                    state.args.insert(name.clone(), value);
                }
            }
            Action::Shell(words) => state.shell = Some(words.clone()),
            Action::Cmd(command) => state.cmd = Some(command.clone()),
            Action::Entrypoint(command) => {
                state.entrypoint = Some(command.clone());
                // The arguments were those of the one before.
                state.cmd = None;
            }
            Action::Label(pairs) => {
                for (name, value) in pairs {
                    let value = state.expand(instruction, value)?;
                    state.artifact.oci.labels.insert(name.clone(), value);
                }
            }
            Action::Expose(ports) => {
                for port in ports {
                    let port = state.expand(instruction, port)?;
                    let port = match port.contains('/') {
                        true => port,
                        false => format!("{port}/tcp"),
                    };
                    if !state.artifact.oci.exposed_ports.contains(&port) {
                        state.artifact.oci.exposed_ports.push(port);
                    }
                    few(instruction, state.artifact.oci.exposed_ports.len(), "ports")?;
                }
            }
            Action::Volume(paths) => {
                for path in paths {
                    let path = state.expand(instruction, path)?;
                    if !state.artifact.oci.volumes.contains(&path) {
                        state.artifact.oci.volumes.push(path);
                    }
                    few(instruction, state.artifact.oci.volumes.len(), "volumes")?;
                }
            }
            Action::Healthcheck(check) => {
                state.artifact.oci.healthcheck = Some((**check).clone());
            }
            Action::SkipCache => {
                if self.bypass == Bypass::No {
                    self.bypass = Bypass::Boundary;
                }
            }
        }
        Ok(())
    }

    /// What a reference means.
    pub(super) async fn base(&mut self, text: &str) -> Result<State, End> {
        self.journal
            .message("preparing", format!("starting from {text}"));
        let app = self.app.clone();
        let tenant_id = self.journal.row.tenant_id.clone();
        let found = self
            .unless_stopped(source::template(&app, &tenant_id, text))
            .await?
            .map_err(|error| End::of("prepare", &error))?;
        let mut state = match found {
            Some(artifact) => State::over(artifact, None),
            None => self.image(text).await?,
        };
        let lower = state.artifact.layer(&self.app.data_dir, "").lower;
        let lost = lower.iter().find(|path| !path.is_dir());
        if let Some(lost) = lost {
            tracing::error!(path = %lost.display(), "a tree of a template is gone");
            let message = format!("a tree of {text} is gone");
            return Err(End::failed(
                "prepare",
                "layer_lost",
                message,
                "build that template again",
            ));
        }
        // Also of an image that nothing is done in.
        self.limit_depth(&mut state).await?;
        // What machines of the base do at their start is not done in those that build.
        state.artifact.start_cmd = None;
        state.artifact.readiness = None;
        Ok(state)
    }

    /// Nothing to start from.
    fn scratch(&self) -> Result<State, End> {
        let empty = self.app.data_dir.join("template-scratch");
        std::fs::create_dir_all(&empty).map_err(|e| {
            let error = crate::error::Error::internal(format!("making {}: {e}", empty.display()));
            End::of("prepare", &error)
        })?;
        Ok(State {
            artifact: Artifact {
                base: "scratch".into(),
                lower: vec![empty],
                cwd: "/".into(),
                ..Artifact::default()
            },
            ..State::default()
        })
    }

    /// Makes a directory that later instructions start in.
    async fn workdir_step(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        path: &str,
    ) -> Result<(), End> {
        let owner = state.artifact.user.clone();
        let files = state.artifact.files();
        let key = key(&[
            "workdir",
            &files,
            path,
            owner.as_deref().unwrap_or_default(),
        ]);
        if self.take(state, &key, instruction, false).await? {
            return Ok(());
        }
        let id = self.step_machine(state).await?;
        let guest = machine::own_guest(&self.app, &id)
            .await
            .map_err(|error| of_machine("build_step", &error))?;
        let query = UnpackQuery {
            path: path.to_owned(),
            owner,
            keep_owners: false,
            mode: None,
        };
        let empty = futures_util::stream::iter([Ok(bytes::Bytes::from_static(&EMPTY_TAR))]);
        self.unless_stopped(guest.unpack(&query, empty))
            .await?
            .map_err(|error| Self::refused(instruction, &error))?;
        self.keep_step(state, key, instruction).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_in_machines() {
        let words =
            |words: &[&str]| Command::Words(words.iter().map(|w| (*w).to_owned()).collect());
        let state = |entrypoint, cmd| State {
            entrypoint,
            cmd,
            ..State::default()
        };
        assert_eq!(state(None, None).start_cmd(), None);
        let both = state(
            Some(words(&["serve", "a b"])),
            Some(words(&["--port", "1"])),
        );
        assert_eq!(both.start_cmd().as_deref(), Some("serve 'a b' --port 1"));
        let line = state(None, Some(Command::Line("echo $X".into())));
        assert_eq!(line.start_cmd().as_deref(), Some("echo $X"));
        let mut over_image = state(None, Some(words(&["--port", "1"])));
        over_image.artifact.oci.entrypoint = vec!["serve".into()];
        over_image.artifact.oci.cmd = vec!["--port".into(), "80".into()];
        assert_eq!(over_image.start_cmd().as_deref(), Some("serve --port 1"));
        over_image.cmd = None;
        assert_eq!(over_image.start_cmd(), None);
    }
}
