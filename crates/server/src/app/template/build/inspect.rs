//! A build looked at without beginning it.

use nullspace_api::template_build::{
    BuildPlan, BuildRequest, ContextManifest, PlanResponse, ValidateResponse, ValidationError,
};
use sha2::{Digest, Sha256};

use super::kind;
use crate::{
    app::{
        AppState, Caller,
        template::{
            definition::{self, Secrets},
            program::{Action, From, Program},
            reference::Reference,
            source,
        },
    },
    error::{Error, Result},
};

/// Whether a build could be begun, and what may not be what was meant.
pub async fn validate(
    app: &AppState,
    caller: &Caller,
    mut request: BuildRequest,
) -> ValidateResponse {
    let secrets = Secrets::take(&mut request);
    let checked = secrets
        .check()
        .and_then(|()| definition::identity(&request))
        .and_then(|_| definition::compile(app, &request));
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    match checked {
        Ok(program) => {
            warnings.extend(program.warnings.clone());
            if let Err(error) = bases(app, &caller.tenant.id, &program).await {
                errors.push(wrong(error));
            }
        }
        Err(error) => errors.push(wrong(error)),
    }
    ValidateResponse {
        valid: errors.is_empty(),
        errors,
        warnings,
    }
}

fn wrong(error: Error) -> ValidationError {
    ValidationError {
        code: error.code.to_owned(),
        message: error.message,
        phase: Some("prepare".into()),
    }
}

/// Whether what it starts from can be there, as far as that can be told without a registry.
async fn bases(app: &AppState, tenant_id: &str, program: &Program) -> Result<()> {
    for stage in &program.stages {
        if let From::Reference(text) = &stage.from
            && !text.contains('$')
        {
            match Reference::parse(text) {
                Ok(reference) if reference.builtin().is_some() => {}
                _ => source::template(app, tenant_id, text).await.map(drop)?,
            }
        }
    }
    Ok(())
}

/// What a build would do.
///
/// # Errors
/// Those of [`begin`].
pub async fn plan(
    app: &AppState,
    caller: &Caller,
    mut request: BuildRequest,
) -> Result<PlanResponse> {
    let secrets = Secrets::take(&mut request);
    secrets.check()?;
    definition::identity(&request)?;
    let program = definition::compile(app, &request)?;
    let (source_type, build_backend) = kind(app, &caller.tenant.id, &request).await;
    let context_digest = request.build_context.as_ref().map(|files| {
        hex::encode(Sha256::digest(
            serde_json::to_vec(files).unwrap_or_default(),
        ))
    });
    let mut plan = BuildPlan {
        start_cmd: request.start_cmd.clone(),
        ignored_instructions: program.ignored.clone(),
        ..BuildPlan::default()
    };
    if let Some(runtime) = &request.runtime_config {
        plan.default_user.clone_from(&runtime.default_user);
        plan.default_workdir.clone_from(&runtime.default_workdir);
        plan.readiness.clone_from(&runtime.readiness);
    }
    for name in request.build_envs.iter().flat_map(|envs| envs.keys()) {
        plan.build_envs.insert(name.clone(), "***".into());
    }
    for stage in &program.stages {
        if let From::Reference(text) = &stage.from {
            plan.base_template.clone_from(text);
        }
        for instruction in &stage.instructions {
            let text = &instruction.text;
            match &instruction.action {
                Action::Run(_) => plan.run_steps.push(text.clone()),
                Action::Env(pairs) => plan.env_assignments.extend(pairs.iter().cloned()),
                Action::Workdir(path) => plan.default_workdir = Some(path.clone()),
                Action::User(user) => plan.default_user = Some(user.clone()),
                _ => {}
            }
            plan.build_steps.push(instruction.action.shown(text));
        }
    }
    Ok(PlanResponse {
        build_backend,
        source_type: source_type.to_owned(),
        source_digest: definition::digest(&request, context_digest.as_deref()),
        context_manifest: request.build_context.as_ref().zip(context_digest).map(
            |(files, digest)| ContextManifest {
                context_manifest_id: format!("ctxm_{}", &digest[..20]),
                context_digest: digest,
                file_count: files.files.len() as u64,
            },
        ),
        dockerfile_digest: definition::dockerfile_digest(&request),
        build_plan: plan,
        warnings: program.warnings,
        requires_base_image_auth: secrets.auth.is_some(),
    })
}
