//! Names of templates: changed, kept for somebody, and where they belong.

use nullspace_api::{
    error::code,
    id,
    template::{
        BUILTIN_NAMESPACE, TemplateAlias, TemplateInfo, TemplateNameClaim, TemplateNamespace,
    },
    time,
};
use nullspace_store::{
    rusqlite::Connection,
    template::{self as rows, TemplateRow},
};

use super::{canonical, find, find_own, refresh};
use crate::{
    app::{
        App, Caller,
        template::reference::{self, BUILTINS, Reference, Subject, Which},
    },
    error::{Error, Result},
};

/// How long a claimed name is kept, in microseconds.
const CLAIM: i64 = 15 * 60 * 1_000_000;

/// Gives a template another name; the old one goes on to lead to it.
///
/// # Errors
/// `invalid_request`, `template_not_found`, `template_name_conflict`, `permission_denied`.
pub async fn rename(app: &App, caller: &Caller, text: &str, name: &str) -> Result<TemplateInfo> {
    reference::check_name(name)?;
    let found = find_own(app, &caller.tenant.id, text, false).await?;
    let (template, name, key_id) = (
        found.template.clone(),
        name.to_owned(),
        caller.key_id.to_string(),
    );
    app.store
        .write(move |tx| {
            let now = time::now();
            // Its own old name it may have back.
            let holder = rows::by_name(tx, &template.tenant_id, &name)?;
            if holder.is_some_and(|holder| holder.id != template.id) {
                return Err(taken(&name));
            }
            check_free(tx, &template.tenant_id, &name, &key_id, None, now)?;
            if name != template.name {
                rows::rename(tx, &template, &name, now)?;
            }
            Ok(())
        })
        .await?;
    refresh(app).await?;
    let tenant_id = &*caller.tenant.id;
    Ok(find(app, tenant_id, &found.template.id, true)
        .await?
        .info(app))
}

/// Whether a new template may have the name, as far as names go that are no template's.
pub(in crate::app::template) fn check_free(
    db: &Connection,
    tenant_id: &str,
    name: &str,
    key_id: &str,
    token: Option<&str>,
    now: i64,
) -> Result<()> {
    if BUILTINS.contains(&name) {
        return Err(Error::conflict(
            code::TEMPLATE_NAME_CONFLICT,
            format!("{name} is the name of a built-in template"),
        )
        .with_action("choose another name"));
    }
    match rows::claimed_by(db, tenant_id, name, now)? {
        Some((holder, kept)) if holder != key_id && token != Some(&*kept) => {
            Err(taken(name).with_action("choose another name, or send the claim's token"))
        }
        _ => Ok(()),
    }
}

pub(in crate::app::template) fn taken(name: &str) -> Error {
    Error::conflict(
        code::TEMPLATE_NAME_CONFLICT,
        format!("the name {name:?} is taken"),
    )
}

/// The names that a template had.
///
/// # Errors
/// `template_not_found`, `permission_denied`.
pub async fn aliases(app: &App, tenant_id: &str, text: &str) -> Result<Vec<TemplateAlias>> {
    let TemplateRow { id, tenant_id, .. } = find(app, tenant_id, text, true).await?.template;
    let aliases = app.store.read(move |db| rows::aliases(db, &id)).await?;
    let shown = aliases.into_iter().map(|(name, at)| TemplateAlias {
        alias_ref: canonical(app, &tenant_id, &name),
        created_at: time::rfc3339(at),
    });
    Ok(shown.collect())
}

/// Takes a name away that a template had.
///
/// # Errors
/// `template_not_found`, `template_alias_not_found`, `permission_denied`.
pub async fn remove_alias(app: &App, tenant_id: &str, text: &str, alias: &str) -> Result<()> {
    let template = find_own(app, tenant_id, text, true).await?.template;
    let name = Reference::parse(alias)
        .ok()
        .and_then(|reference| reference.name().map(str::to_owned))
        .unwrap_or_default();
    let id = template.id;
    let removed = app
        .store
        .write(move |tx| rows::remove_alias(tx, &id, &name))
        .await?;
    if !removed {
        let shown: String = alias.chars().take(128).collect();
        let message = format!("template {} has no alias {shown:?}", template.name);
        return Err(Error::not_found(code::TEMPLATE_ALIAS_NOT_FOUND, message));
    }
    refresh(app).await
}

/// Keeps a name for whoever asks, for a quarter of an hour.
///
/// # Errors
/// `invalid_request`, `template_name_conflict`.
pub async fn claim(app: &App, caller: &Caller, text: &str) -> Result<TemplateNameClaim> {
    let own = &*caller.tenant.name;
    let invalid = || {
        Error::invalid(format!(
            "template_ref: must be a name without a tag, alone or in the namespace {own:?}"
        ))
    };
    let reference = Reference::parse(text).map_err(|_| invalid())?;
    let name = match (reference.subject, reference.which) {
        (Subject::Name(name), Which::Default) => name,
        (Subject::Of(namespace, name), Which::Default) if namespace == own => name,
        _ => return Err(invalid()),
    };
    let token = id::new(id::TEMPLATE_CLAIM);
    let (tenant_id, key_id) = (caller.tenant_id(), caller.key_id.to_string());
    let claim = TemplateNameClaim {
        claim_token: token.clone(),
        canonical_ref: canonical(app, &tenant_id, &name),
        expires_at: time::rfc3339(time::now() + CLAIM),
    };
    app.store
        .write(move |tx| {
            let now = time::now();
            rows::forget_claims(tx, now, None)?;
            if rows::by_name(tx, &tenant_id, &name)?.is_some()
                || rows::claimed_by(tx, &tenant_id, &name, now)?.is_some()
            {
                return Err(taken(&name));
            }
            check_free(tx, &tenant_id, &name, &key_id, None, now)?;
            rows::claim(tx, &token, &tenant_id, &name, &key_id, now + CLAIM)?;
            Ok(())
        })
        .await?;
    Ok(claim)
}

/// Gives a name back.
///
/// # Errors
/// `template_name_claim_not_found`.
pub async fn release(app: &App, token: &str, key_id: &str) -> Result<()> {
    let (token, key_id) = (token.to_owned(), key_id.to_owned());
    let released = app
        .store
        .write(move |tx| {
            rows::forget_claims(tx, time::now(), None)?;
            rows::release(tx, &token, &key_id)
        })
        .await?;
    match released {
        true => Ok(()),
        false => Err(Error::not_found(
            code::TEMPLATE_NAME_CLAIM_NOT_FOUND,
            "no such claim, or it is over its time",
        )),
    }
}

/// A namespace: the caller's own, or that of the built-in templates.
///
/// # Errors
/// `template_namespace_not_found`.
pub fn namespace(caller: &Caller, slug: &str) -> Result<TemplateNamespace> {
    let own = &*caller.tenant.name;
    let kind = match slug {
        _ if slug == own => "user",
        BUILTIN_NAMESPACE => "system",
        _ => {
            let shown: String = slug.chars().take(64).collect();
            return Err(Error::not_found(
                code::TEMPLATE_NAMESPACE_NOT_FOUND,
                format!("no namespace {shown:?}"),
            ));
        }
    };
    Ok(TemplateNamespace {
        slug: slug.to_owned(),
        kind: kind.into(),
        is_default: slug == own,
    })
}
