//! Copying: from the build context, from another stage, from another template.

use std::{io, path::Path};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use nullspace_protocol::{
    ExecRequest as GuestExec, FileKind, GuestClient, GuestError, PathRequest, ReadQuery,
    UnpackQuery, frame::Frame,
};

use super::{End, Worker, instruction::State, of_machine};
use crate::app::{
    machine,
    template::{
        context,
        layer::key,
        program::{Copy, CopyFrom, Inline, Instruction, quoted},
    },
};

/// Where archives are that are about to be unpacked.
const INCOMING: &str = "/.nullspace-add";
/// What the kernel shows in every machine, and no image has.
const KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Ends of names of archives that `tar` unpacks.
const ARCHIVES: [&str; 9] = [
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst",
];

impl Worker {
    /// Copies, and keeps that as a layer.
    pub(super) async fn copy_step(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        copy: &Copy,
        done: &[Option<State>],
    ) -> Result<(), End> {
        match &copy.from {
            CopyFrom::Context => self.copy_context(state, instruction, copy).await,
            CopyFrom::Stage(number) => {
                let other = done[*number].clone().unwrap_or_default();
                self.copy_machine(state, instruction, copy, other).await
            }
            CopyFrom::Reference(text) => {
                let other = self.base(text).await?;
                self.copy_machine(state, instruction, copy, other).await
            }
        }
    }

    async fn copy_context(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        copy: &Copy,
    ) -> Result<(), End> {
        let failed = |why: String| {
            let place = instruction
                .line
                .map_or(String::new(), |line| format!("line {line}: "));
            End::failed(
                "build_step",
                "copy",
                format!("{place}{why}"),
                "see that the files are in the build context and not ignored",
            )
        };
        let selected = match copy.sources.is_empty() {
            true => Ok(Vec::new()),
            false => self.job.context.select(&copy.sources, &copy.to),
        };
        let selection = selected.map_err(failed)?;
        let mode = copy
            .mode
            .map(|mode| format!("{mode:o}"))
            .unwrap_or_default();
        let inline = serde_json::to_string(&copy.inline).unwrap_or_default();
        let digest = context::digest(&selection);
        let owner = copy.owner.clone().unwrap_or_default();
        let cwd = state.artifact.cwd.clone();
        let files = state.artifact.files();
        let key = key(&[
            "copy", &files, &digest, &inline, &copy.to, &owner, &mode, &cwd,
        ]);
        if self.take(state, &key, instruction, copy.force).await? {
            return Ok(());
        }
        let id = self.step_machine(state).await?;
        let guest = own(self, &id).await?;
        let to = machine::absolute(&cwd, &copy.to);
        let source_name = (copy.sources.first())
            .map(|source| {
                source
                    .trim_end_matches('/')
                    .rsplit('/')
                    .next()
                    .unwrap_or(source)
                    .to_owned()
            })
            .unwrap_or_default();
        for Inline { name, content, .. } in &copy.inline {
            let (into, name) = match copy.to.ends_with('/') {
                true => (to.clone(), name.clone()),
                false => (parent(&to), base_name(&to)),
            };
            let size = content.len() as u64;
            let data = file(size, 0o644, &name, stream_of(content.clone()));
            self.unpack(&guest, instruction, &into, copy, data).await?;
        }
        let is_archive =
            |name: &str| copy.unpacks && ARCHIVES.iter().any(|end| name.ends_with(end));
        let (archives, plain): (Vec<_>, Vec<_>) =
            selection.into_iter().partition(|(name, entry)| {
                let name = if name.is_empty() { &source_name } else { name };
                entry.content.is_some() && is_archive(name)
            });
        for (name, entry) in archives {
            let name = if name.is_empty() {
                source_name.clone()
            } else {
                name
            };
            let name = base_name(&name);
            let data = context::archive(&self.app, vec![(String::new(), entry)], name.clone());
            self.unpack(&guest, instruction, INCOMING, copy, data.boxed())
                .await?;
            self.extract(&guest, instruction, &format!("{INCOMING}/{name}"), &to)
                .await?;
        }
        if !plain.is_empty() {
            let is_file = matches!(plain.as_slice(), [(name, _)] if name.is_empty());
            let (into, name) = match is_file {
                true => {
                    self.file_target(&guest, instruction, &to, &source_name)
                        .await?
                }
                false => (to, source_name),
            };
            let data = context::archive(&self.app, plain, name);
            self.unpack(&guest, instruction, &into, copy, data.boxed())
                .await?;
        } else if copy.inline.is_empty() && !copy.unpacks {
            // An empty directory is made all the same.
            let empty = stream_of("\0".repeat(1024));
            self.unpack(&guest, instruction, &to, copy, empty).await?;
        }
        self.keep_step(state, key, instruction).await
    }

    /// Where a single file goes: into a directory that is there, or to the target itself.
    async fn file_target(
        &self,
        guest: &GuestClient,
        instruction: &Instruction,
        to: &str,
        name: &str,
    ) -> Result<(String, String), End> {
        let request = PathRequest {
            path: to.to_owned(),
            follow: true,
            ..PathRequest::default()
        };
        match self.unless_stopped(guest.stat(&request)).await? {
            Ok(info) if info.kind == FileKind::Dir => Ok((to.to_owned(), name.to_owned())),
            Ok(_) | Err(GuestError::Refused(_)) => Ok((parent(to), base_name(to))),
            Err(error) => Err(Self::refused(instruction, &error)),
        }
    }

    async fn unpack(
        &self,
        guest: &GuestClient,
        instruction: &Instruction,
        into: &str,
        copy: &Copy,
        data: Data,
    ) -> Result<(), End> {
        let query = UnpackQuery {
            path: into.to_owned(),
            owner: copy.owner.clone(),
            keep_owners: copy.owner.is_none() && !matches!(copy.from, CopyFrom::Context),
            mode: copy.mode,
        };
        let unpacked = self.unless_stopped(guest.unpack(&query, data)).await?;
        unpacked
            .map(drop)
            .map_err(|error| Self::refused(instruction, &error))
    }

    /// Unpacks an archive that is in the machine, with the machine's own `tar`.
    async fn extract(
        &self,
        guest: &GuestClient,
        instruction: &Instruction,
        archive: &str,
        to: &str,
    ) -> Result<(), End> {
        let (archive, to) = (quoted(archive), quoted(to));
        let script = format!("mkdir -p {to} && tar -xf {archive} -C {to} && rm -rf {INCOMING}");
        let request = GuestExec {
            argv: vec!["/bin/sh".into(), "-c".into(), script],
            label: Some("build step".into()),
            ..GuestExec::default()
        };
        let refused = |error: GuestError| Self::refused(instruction, &error);
        let mut output = self
            .unless_stopped(guest.exec(&request))
            .await?
            .map_err(refused)?;
        let mut said = Vec::new();
        loop {
            match self.unless_stopped(output.next()).await?.map_err(refused)? {
                Some(Frame::Stderr(_, data)) if said.len() < 1024 => said.extend_from_slice(&data),
                Some(Frame::Exit { code: 0, .. }) => return Ok(()),
                Some(Frame::Exit { .. }) | None => {
                    let why = String::from_utf8_lossy(&said);
                    let message = format!("{}: {}", instruction.text, why.trim());
                    let action = "see that the archive is whole and the image has tar";
                    return Err(End::failed("build_step", "copy", message, action));
                }
                Some(_) => {}
            }
        }
    }

    /// Copies out of a machine of another tree.
    async fn copy_machine(
        &mut self,
        state: &mut State,
        instruction: &Instruction,
        copy: &Copy,
        mut other: State,
    ) -> Result<(), End> {
        let sources = serde_json::to_string(&copy.sources).unwrap_or_default();
        let mode = copy
            .mode
            .map(|mode| format!("{mode:o}"))
            .unwrap_or_default();
        let owner = copy.owner.clone().unwrap_or_default();
        let (files, others) = (state.artifact.files(), other.artifact.files());
        let cwd = state.artifact.cwd.clone();
        let key = key(&[
            "copy-from",
            &files,
            &others,
            &sources,
            &copy.to,
            &owner,
            &mode,
            &cwd,
        ]);
        if self.take(state, &key, instruction, copy.force).await? {
            return Ok(());
        }
        let from = self.step_machine(&mut other).await?;
        // Ended here whatever happens: it is not the machine of the step.
        self.machine = None;
        let copied = self
            .copy_between(&from, state, instruction, copy, &cwd)
            .await;
        if let Err(error) = machine::destroy(&self.app, &from, None).await {
            tracing::error!(machine = from, context = ?error.context, "the machine of a build could not be ended");
        }
        copied?;
        self.keep_step(state, key, instruction).await
    }

    async fn copy_between(
        &mut self,
        from: &str,
        state: &mut State,
        instruction: &Instruction,
        copy: &Copy,
        cwd: &str,
    ) -> Result<(), End> {
        let to = machine::absolute(cwd, &copy.to);
        let id = self.step_machine(state).await?;
        let (source, target) = (own(self, from).await?, own(self, &id).await?);
        let mut sources = Vec::new();
        for pattern in &copy.sources {
            sources.extend(
                self.matching(&source, instruction, &machine::absolute("/", pattern))
                    .await?,
            );
        }
        let several = sources.len() > 1;
        for path in sources {
            if is_of_kernel(&path) {
                // What the other has of it is an empty directory.
                let empty = stream_of("\0".repeat(1024));
                self.unpack(&target, instruction, &to, copy, empty).await?;
                continue;
            }
            let request = PathRequest {
                path: path.clone(),
                follow: true,
                ..PathRequest::default()
            };
            let info = self.unless_stopped(source.stat(&request)).await?;
            let info = info.map_err(|error| Self::refused(instruction, &error))?;
            let query = ReadQuery {
                path: path.clone(),
                ..ReadQuery::default()
            };
            if info.kind == FileKind::Dir {
                let data = self.unless_stopped(source.tar(&query)).await?;
                let data = data.map_err(|error| Self::refused(instruction, &error))?;
                self.unpack(&target, instruction, &to, copy, data.boxed())
                    .await?;
                continue;
            }
            let (into, name) = match several || copy.to.ends_with('/') {
                true => (to.clone(), base_name(&path)),
                false => {
                    self.file_target(&target, instruction, &to, &base_name(&path))
                        .await?
                }
            };
            let read = self.unless_stopped(source.read(&query)).await?;
            let (info, data) = read.map_err(|error| Self::refused(instruction, &error))?;
            let data = file(info.size, info.mode, &name, data.boxed());
            self.unpack(&target, instruction, &into, copy, data).await?;
        }
        Ok(())
    }

    /// What a source in a machine means.
    async fn matching(
        &self,
        guest: &GuestClient,
        instruction: &Instruction,
        pattern: &str,
    ) -> Result<Vec<String>, End> {
        if !base_name(pattern).contains(['*', '?', '[']) {
            return Ok(vec![pattern.to_owned()]);
        }
        let failed = |why: String| {
            End::failed(
                "build_step",
                "copy",
                why,
                "see that the files are in the other stage",
            )
        };
        let glob = globset::GlobBuilder::new(&base_name(pattern))
            .literal_separator(true)
            .build()
            .map_err(|error| failed(error.to_string()))?
            .compile_matcher();
        let request = PathRequest {
            path: parent(pattern),
            ..PathRequest::default()
        };
        let listed = self.unless_stopped(guest.list(&request)).await?;
        let listed = listed.map_err(|error| Self::refused(instruction, &error))?;
        let found: Vec<String> = (listed.into_iter())
            .filter(|info| glob.is_match(Path::new(&info.name)))
            .map(|info| info.path)
            .collect();
        match found.is_empty() {
            true => Err(failed(format!(
                "{pattern:?} matches nothing in the other stage"
            ))),
            false => Ok(found),
        }
    }
}

type Data = futures_util::stream::BoxStream<'static, io::Result<Bytes>>;

async fn own(worker: &Worker, id: &str) -> Result<GuestClient, End> {
    machine::own_guest(&worker.app, id)
        .await
        .map_err(|error| of_machine("build_step", &error))
}

/// Whether it is what the kernel shows, or in that.
fn is_of_kernel(path: &str) -> bool {
    KERNEL.iter().any(|top| {
        (path.strip_prefix(top)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

fn parent(path: &str) -> String {
    match path.rsplit_once('/') {
        Some(("", _)) | None => "/".to_owned(),
        Some((parent, _)) => parent.to_owned(),
    }
}

fn base_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn stream_of(text: String) -> Data {
    futures_util::stream::iter([Ok(Bytes::from(text.into_bytes()))]).boxed()
}

/// A tar of one file.
fn file(
    size: u64,
    mode: u32,
    name: &str,
    data: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Data {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_size(size);
    header.set_entry_type(tar::EntryType::Regular);
    // Long names take blocks of their own before it.
    let mut archive = tar::Builder::new(Vec::new());
    let named = archive
        .append_data(&mut header, name, io::empty())
        .map(|()| Bytes::copy_from_slice(archive.get_ref()));
    let rest = (512 - size % 512) % 512;
    // The end of the file's last block, and of the archive.
    let end = vec![0; usize::try_from(rest).unwrap_or_default() + 1024];
    futures_util::stream::iter([named])
        .chain(data)
        .chain(futures_util::stream::iter([Ok(Bytes::from(end))]))
        .boxed()
}
