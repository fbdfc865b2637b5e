//! What a build starts from: a template, or an image.

use std::sync::Arc;

use nullspace_api::error::code;
use nullspace_templates::Layer;

use super::{
    artifact::Artifact,
    named,
    reference::{Reference, Subject, Which},
};
use crate::{app::AppState, error::Result};

/// The template that a reference to a base means, if it means one. `python:3.12` is an image unless a template of that
/// name was built here.
///
/// # Errors
/// `template_not_found` for what can only be a template.
pub(super) async fn template(
    app: &AppState,
    tenant_id: &str,
    text: &str,
) -> Result<Option<Artifact>> {
    let reference = match Reference::parse(text) {
        Ok(reference) => reference,
        // A registry's name, or a path in one.
        Err(_) => return Ok(None),
    };
    if reference.builtin().is_some() {
        super::ensure(app, tenant_id, text).await?;
        let layer: Arc<Layer> = app.templates.find(tenant_id, text)?;
        return Ok(Some(Artifact::of(&layer)));
    }
    match named::exact(app, tenant_id, text).await {
        Ok((artifact, _)) => Ok(Some(artifact)),
        Err(error) if error.code == code::TEMPLATE_NOT_FOUND => {
            // A namespace that is not the tenant's own may as well be part of an image's name.
            let own = named::namespace_of(app, tenant_id);
            let may_be = match &reference.subject {
                Subject::Name(_) => true,
                Subject::Of(namespace, _) => *namespace != own,
                Subject::Id(_) | Subject::Builtin(_) => false,
            };
            let is_image = may_be && !matches!(reference.which, Which::Build(_));
            match is_image {
                true => Ok(None),
                false => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}
