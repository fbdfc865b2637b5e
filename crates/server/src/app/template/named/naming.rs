//! Names of templates: changed, kept for somebody, and where they belong.

use nullspace_api::{
    error::code,
    id,
    template::{
        BUILTIN_NAMESPACE, NAMESPACE, TemplateAlias, TemplateInfo, TemplateNameClaim,
        TemplateNamespace,
    },
    time,
};
use nullspace_store::{rusqlite::Connection, template as rows};

use super::{canonical, find, refresh};
use crate::{
    app::{
        App,
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
pub async fn rename(app: &App, text: &str, name: &str, key_id: &str) -> Result<TemplateInfo> {
    reference::check_name(name)?;
    let found = find(app, text, false).await?;
    let (template, name, key_id) = (found.template.clone(), name.to_owned(), key_id.to_owned());
    app.store
        .write(move |tx| {
            let now = time::now();
            // Its own old name it may have back.
            let holder = rows::by_name(tx, &name)?;
            if holder.is_some_and(|holder| holder.id != template.id) {
                return Err(taken(&name));
            }
            check_free(tx, &name, &key_id, None, now)?;
            if name != template.name {
                rows::rename(tx, &template, &name, now)?;
            }
            Ok(())
        })
        .await?;
    refresh(app).await?;
    Ok(find(app, &found.template.id, true).await?.info(app))
}

/// Whether a new template may have the name, as far as names go that are no template's.
pub(in crate::app::template) fn check_free(
    db: &Connection,
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
    match rows::claimed_by(db, name, now)? {
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
pub async fn aliases(app: &App, text: &str) -> Result<Vec<TemplateAlias>> {
    let id = find(app, text, true).await?.template.id;
    let aliases = app.store.read(move |db| rows::aliases(db, &id)).await?;
    let shown = aliases.into_iter().map(|(name, at)| TemplateAlias {
        alias_ref: canonical(&name),
        created_at: time::rfc3339(at),
    });
    Ok(shown.collect())
}

/// Takes a name away that a template had.
///
/// # Errors
/// `template_not_found`, `template_alias_not_found`, `permission_denied`.
pub async fn remove_alias(app: &App, text: &str, alias: &str) -> Result<()> {
    let template = find(app, text, true).await?.template;
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
pub async fn claim(app: &App, text: &str, key_id: &str) -> Result<TemplateNameClaim> {
    let reference = Reference::parse(text).map_err(|_| {
        Error::invalid("template_ref: must be a name, or one in the namespace `default`")
    })?;
    let (Subject::Name(name) | Subject::Own(name), Which::Default) =
        (reference.subject, reference.which)
    else {
        return Err(Error::invalid(
            "template_ref: must be a name without a tag, in the namespace `default`",
        ));
    };
    let (token, key_id) = (id::new(id::TEMPLATE_CLAIM), key_id.to_owned());
    let claim = TemplateNameClaim {
        claim_token: token.clone(),
        canonical_ref: canonical(&name),
        expires_at: time::rfc3339(time::now() + CLAIM),
    };
    app.store
        .write(move |tx| {
            let now = time::now();
            rows::forget_claims(tx, now, None)?;
            if rows::by_name(tx, &name)?.is_some() || rows::claimed_by(tx, &name, now)?.is_some() {
                return Err(taken(&name));
            }
            check_free(tx, &name, &key_id, None, now)?;
            rows::claim(tx, &token, &name, &key_id, now + CLAIM)?;
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

/// A namespace.
///
/// # Errors
/// `template_namespace_not_found`.
pub fn namespace(slug: &str) -> Result<TemplateNamespace> {
    let kind = match slug {
        NAMESPACE => "user",
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
        is_default: slug == NAMESPACE,
    })
}
