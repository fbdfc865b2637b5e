//! The local files that a build copies: found, measured, sent if the server lacks them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use nullspace_api::template::{BlobDescriptor, EntryType, Mode, PreflightRequest};
use nullspace_api::template_build::{BuildContext, BuildStep, ContextFile};
use nullspace_client::Client;
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;

use crate::error::CliError;

/// Files by their place in the context.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<String, Local>);

#[derive(Debug)]
struct Local {
    path: PathBuf,
    mode: u32,
    /// Of files: SHA-256 and size.
    content: Option<(String, u64)>,
    force: bool,
}

/// What is left out.
pub(super) struct Ignored(Gitignore);

impl Ignored {
    /// By `.dockerignore` in a directory, or the one of a Dockerfile, and by patterns.
    pub(super) fn read(
        root: &Path,
        dockerfile: Option<&Path>,
        patterns: &[String],
    ) -> Result<Self, CliError> {
        let mut builder = GitignoreBuilder::new(root);
        let own = dockerfile.map(|path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".dockerignore");
            PathBuf::from(name)
        });
        let file = match own {
            Some(own) if own.exists() => own,
            _ => root.join(".dockerignore"),
        };
        if file.exists()
            && let Some(error) = builder.add(&file)
        {
            return Err(CliError::usage(format!("{}: {error}", file.display())));
        }
        for pattern in patterns {
            builder
                .add_line(None, pattern)
                .map_err(|error| CliError::usage(format!("--file-ignore {pattern}: {error}")))?;
        }
        let ignored = builder.build();
        ignored
            .map(Self)
            .map_err(|error| CliError::usage(format!("{}: {error}", file.display())))
    }

    fn is_out(&self, path: &Path, is_dir: bool) -> bool {
        self.0.matched(path, is_dir).is_ignore()
    }
}

impl Files {
    /// Everything below a directory, but for a Dockerfile and what says what is left out.
    pub(super) fn of_directory(
        root: &Path,
        dockerfile: &Path,
        ignored: &Ignored,
    ) -> Result<Self, CliError> {
        let mut files = Self::default();
        let mut own = dockerfile.as_os_str().to_owned();
        own.push(".dockerignore");
        let without = [
            dockerfile.to_owned(),
            PathBuf::from(own),
            root.join(".dockerignore"),
        ];
        files.add(root, "", ignored, &without, false)?;
        files.0.remove("");
        Ok(files)
    }

    /// What steps copy; the steps then name places in the context.
    pub(super) fn of_steps(
        steps: &mut [BuildStep],
        root: &Path,
        ignored: &Ignored,
    ) -> Result<Self, CliError> {
        let mut files = Self::default();
        for (number, step) in steps.iter_mut().enumerate() {
            let BuildStep::Copy(item) = step else {
                continue;
            };
            for (n, source) in item.sources.iter_mut().enumerate() {
                let path = root.join(&*source);
                let name = path
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned());
                let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
                let name: String = (name.unwrap_or_else(|| "files".into()).chars())
                    .map(|c| if plain(c) { c } else { '_' })
                    .collect();
                let place = format!("builder-context/step-{number}/src-{n}/{name}");
                files.add(&path, &place, ignored, &[], item.force_upload)?;
                *source = place;
            }
        }
        Ok(files)
    }

    /// An image, `PATH[:NAME]`, beside what else there is. Answers what a build calls it.
    pub(super) fn add_archive(&mut self, text: &str) -> Result<String, CliError> {
        // A path may have colons, and so may a name.
        let mut ends = (text.match_indices(':').map(|(at, _)| at)).chain([text.len()]);
        let end = ends
            .rfind(|end| *end > 0 && Path::new(&text[..*end]).exists())
            .ok_or_else(|| CliError::usage(format!("--from-archive {text}: no such file")))?;
        let path = Path::new(&text[..end]);
        let real = std::fs::canonicalize(path)
            .map_err(|error| CliError::local(format!("cannot read {}", path.display()), &error))?;
        let place = "image-archive/image";
        self.add(&real, place, &Ignored(Gitignore::empty()), &[], false)?;
        // The colon before the name, if there is one, is a part of the rest.
        Ok(format!("archive:{place}{}", &text[end..]))
    }

    fn add(
        &mut self,
        path: &Path,
        place: &str,
        ignored: &Ignored,
        without: &[PathBuf],
        force: bool,
    ) -> Result<(), CliError> {
        let failed = |error: std::io::Error| {
            CliError::local(format!("cannot read {}", path.display()), &error)
        };
        let meta = std::fs::symlink_metadata(path).map_err(failed)?;
        let mode = meta.permissions().mode() & 0o777;
        if meta.is_dir() {
            let local = Local {
                path: path.to_owned(),
                mode,
                content: None,
                force,
            };
            self.0.insert(place.to_owned(), local);
            for entry in std::fs::read_dir(path).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let (inner, name) = (entry.path(), entry.file_name());
                let is_dir = entry.file_type().map_err(failed)?.is_dir();
                if without.contains(&inner) || ignored.is_out(&inner, is_dir) {
                    continue;
                }
                let name = name.to_str().ok_or_else(|| {
                    CliError::usage(format!("{}: the name is no text", inner.display()))
                })?;
                let place = match place {
                    "" => name.to_owned(),
                    place => format!("{place}/{name}"),
                };
                self.add(&inner, &place, ignored, without, force)?;
            }
            return Ok(());
        }
        if !meta.is_file() {
            return Err(CliError::usage(format!(
                "{}: is neither a file nor a directory",
                path.display()
            ))
            .hint("Leave it out with .dockerignore or --file-ignore."));
        }
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let mut digest = Sha256::new();
        let size = std::io::copy(&mut file, &mut digest).map_err(failed)?;
        let local = Local {
            path: path.to_owned(),
            mode,
            content: Some((format!("{:x}", digest.finalize()), size)),
            force,
        };
        self.0.insert(place.to_owned(), local);
        Ok(())
    }

    /// Sends what the server lacks, and answers the context of the build.
    pub(super) async fn send(&self, client: &Client) -> Result<Option<BuildContext>, CliError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mode = |local: &Local| Some(Mode::Text(format!("{:04o}", local.mode)));
        let files = self.0.iter().map(|(place, local)| BlobDescriptor {
            path: place.clone(),
            entry_type: match local.content {
                Some(_) => EntryType::File,
                None => EntryType::Dir,
            },
            mode: mode(local),
            sha256: local.content.as_ref().map(|(digest, _)| digest.clone()),
            size_bytes: local.content.as_ref().map(|(_, size)| *size),
            force_upload: local.force && local.content.is_some(),
        });
        let request = PreflightRequest {
            files: files.collect(),
        };
        let answer = client.preflight_template_blobs(&request).await?;
        let mut context = BuildContext::default();
        let mut sent = std::collections::HashSet::new();
        for result in answer.files {
            let Some(local) = self.0.get(&result.path) else {
                continue;
            };
            if let Some(blob) = &result.blob_id
                && result.missing
                && sent.insert(blob.clone())
            {
                let path = local.path.clone();
                let open = move || {
                    let path = path.clone();
                    futures_util::TryFutureExt::try_flatten_stream(async move {
                        let file = tokio::fs::File::open(path).await?;
                        Ok::<_, std::io::Error>(ReaderStream::with_capacity(file, 256 << 10))
                    })
                };
                client.put_template_blob(blob, open).await?;
            }
            context.files.push(ContextFile {
                path: result.path,
                entry_type: result.entry_type,
                mode: mode(local),
                blob_id: result.blob_id,
                content_base64: None,
            });
        }
        Ok(Some(context))
    }
}
