//! `nullspace template build`, `validate` and `plan`.

use nullspace_api::template_build::{BuildConfig, BuildRequest, RuntimeConfig};

use super::context::{Files, Ignored};
use super::history::{finished, follow, secrets};
use super::make::{Args, Asked, From};
use crate::app::App;
use crate::error::{CliError, Outcome};

/// What is asked of the server. With `send` the files that it lacks are sent.
async fn request(app: &App, mut asked: Asked, send: bool) -> Result<BuildRequest, CliError> {
    let here = || {
        std::env::current_dir().map_err(|error| CliError::local("cannot see where this is", &error))
    };
    let mut request = BuildRequest::default();
    let files = match &asked.from {
        From::Nothing => Files::default(),
        From::Content(text) => {
            request.dockerfile = Some(text.clone());
            Files::default()
        }
        From::Dockerfile(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                CliError::local(format!("cannot read {}", path.display()), &error)
            })?;
            request.dockerfile = Some(text);
            let path = std::path::absolute(path)
                .map_err(|error| CliError::local("cannot see where this is", &error))?;
            let parent = path.parent().unwrap_or(&path).to_owned();
            let root = asked.context.clone().unwrap_or(parent);
            let ignored = Ignored::read(&root, Some(&path), &asked.ignore)?;
            Files::of_directory(&root, &path, &ignored)?
        }
        From::Base(text) | From::Archive(text) => {
            let root = match &asked.context {
                Some(root) => root.clone(),
                None => here()?,
            };
            let ignored = Ignored::read(&root, None, &asked.ignore)?;
            let mut files = Files::of_steps(&mut asked.steps, &root, &ignored)?;
            request.base_image = Some(match matches!(asked.from, From::Archive(_)) {
                true => files.add_archive(text)?,
                false => text.clone(),
            });
            files
        }
    };
    if request.base_image.is_some() {
        request.steps = Some(asked.steps);
    }
    if let Some(name) = asked.name {
        let (name, tag) = match name.split_once(':') {
            Some((name, tag)) => (name.to_owned(), Some(tag.to_owned())),
            None => (name, None),
        };
        request.name = Some(name);
        asked.tags.extend(tag);
    }
    request.tags = (!asked.tags.is_empty()).then_some(asked.tags);
    request.build_envs = (!asked.build_envs.is_empty()).then_some(asked.build_envs);
    request.start_cmd = asked.start_cmd;
    let runtime = RuntimeConfig {
        default_user: asked.user,
        default_workdir: asked.workdir,
        default_envs: (!asked.runtime_envs.is_empty()).then_some(asked.runtime_envs),
        readiness: asked.readiness,
        isolation: asked.isolation,
    };
    request.runtime_config = (runtime != RuntimeConfig::default()).then_some(runtime);
    let [values, envs, paths] = &asked.secrets;
    let secrets = secrets(app, values, envs, paths)?;
    request.build_secrets = (!secrets.is_empty()).then_some(secrets);
    request.base_image_auth = asked.auth;
    request.build_config = Some(BuildConfig {
        vcpus: asked.vcpus,
        memory_mib: asked.memory_mib,
        internet_access: asked.no_internet.then_some(false),
        disk_mb: None,
    });
    request.skip_cache = asked.skip_cache;
    if send {
        request.build_context = files.send(&app.client()?).await?;
    }
    Ok(request)
}

pub(super) async fn build(args: &Args, app: &App) -> Outcome {
    let asked = args.read(&mut false)?;
    if asked.name.is_none() {
        return Err(CliError::usage("the template has no name").hint("Add --name NAME."));
    }
    let (background, format) = (asked.background, asked.log_format);
    let request = request(app, asked, true).await?;
    let begun = app.client()?.start_template_build(&request).await?;
    if background {
        app.ui.json(&begun)?;
        return Ok(0);
    }
    follow(app, &begun.build_id, 0, format).await?;
    finished(app, &begun.build_id).await
}

pub(super) async fn validate(args: &Args, app: &App) -> Outcome {
    let request = request(app, args.read(&mut false)?, false).await?;
    let checked = app.client()?.validate_template(&request).await?;
    app.ui.json(&checked)?;
    Ok(u8::from(!checked.valid))
}

pub(super) async fn plan(args: &Args, app: &App) -> Outcome {
    let request = request(app, args.read(&mut false)?, false).await?;
    app.ui.json(&app.client()?.plan_template(&request).await?)?;
    Ok(0)
}
