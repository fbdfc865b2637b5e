//! Templates that were built, by name: looked up in memory, told about, tagged, renamed, removed.

mod naming;

use std::{collections::HashMap, sync::Arc};

use nullspace_api::{
    error::code,
    id,
    template::{BUILTIN_NAMESPACE, DEFAULT_TAG, TemplateInfo, TemplateTag, Visibility},
    template_build::BuildStatus,
    time,
};
use nullspace_store::{
    StoreError,
    rusqlite::Connection,
    template::{self as rows, TagRow, TemplateRow},
    template_build::{self as builds, BuildRow},
    tenant as tenants,
};
use nullspace_templates::Layer;

use super::{
    artifact::Artifact,
    build,
    reference::{self, BUILTINS, Reference, Subject, Which},
};
use crate::{
    app::App,
    error::{Error, Kind, Result},
};

pub use naming::{aliases, claim, namespace, release, remove_alias, rename};
pub(super) use naming::{check_free, taken};

/// What references mean, for whoever cannot wait: see [`refresh`]. The key is the template's id, or its name with that of its tenant
/// or with its tenant's id before it, and a tag.
pub(super) type Index = HashMap<String, Named>;

/// What a reference means, and to whom.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) layer: Arc<Layer>,
    pub(super) tenant_id: String,
    pub(super) is_public: bool,
}

/// Where an index has a template: by id, and by the names that it has or had.
pub(super) fn places<'a>(
    template: &TemplateRow,
    tenant: Option<&str>,
    names: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let mut places = vec![template.id.clone()];
    for name in names {
        places.push(format!("{}/{name}", template.tenant_id));
        places.extend(tenant.map(|tenant| format!("{tenant}/{name}")));
    }
    places
}

/// Reads what every reference means that names no build.
///
/// # Errors
/// When the record cannot be read.
pub(super) async fn refresh(app: &App) -> Result<()> {
    let _naming = app.templates.naming.lock().await;
    let found = app
        .store
        .read(|db| {
            let owners: HashMap<String, String> = tenants::list(db)?
                .into_iter()
                .map(|tenant| (tenant.id, tenant.name))
                .collect();
            let mut found = Vec::new();
            for template in rows::list(db)? {
                let aliases = rows::aliases(db, &template.id)?;
                let names = aliases.iter().map(|(name, _)| name.as_str());
                let names = std::iter::once(template.name.as_str()).chain(names);
                let tenant = owners.get(&template.tenant_id).map(String::as_str);
                let places = places(&template, tenant, names);
                for tag in rows::tags(db, &template.id)? {
                    if let Some(build) = builds::get(db, &tag.build_id)? {
                        found.push((template.clone(), places.clone(), tag.tag, build));
                    }
                }
            }
            Ok::<_, StoreError>(found)
        })
        .await?;
    let mut index = Index::new();
    for (template, places, tag, build) in found {
        let Some(artifact) = build::artifact(app, &build) else {
            continue;
        };
        let named = Named {
            layer: Arc::new(artifact.layer(&app.data_dir, &template.name)),
            is_public: visibility(&template) == Visibility::Public,
            tenant_id: template.tenant_id,
        };
        for place in places {
            index.insert(format!("{place}:{tag}"), named.clone());
        }
    }
    app.templates.set_named(index);
    Ok(())
}

/// What a reference of a tenant means in the index.
pub(super) fn look_up(index: &Index, tenant_id: &str, reference: &Reference) -> Option<Arc<Layer>> {
    let subject = match &reference.subject {
        Subject::Id(id) => id.clone(),
        Subject::Name(name) | Subject::Builtin(name) => format!("{tenant_id}/{name}"),
        Subject::Of(namespace, name) => format!("{namespace}/{name}"),
    };
    let get = |tag: &str| {
        let named = index.get(&format!("{subject}:{tag}"))?;
        (named.is_public || named.tenant_id == tenant_id).then(|| named.layer.clone())
    };
    get(reference.tag()?).or_else(|| reference.is_latest().then(|| get(DEFAULT_TAG)).flatten())
}

/// A template that was built.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) template: TemplateRow,
    pub(super) tags: Vec<TagRow>,
    /// The build that the reference means, if it means one that is ready.
    pub(super) build: Option<BuildRow>,
}

impl Found {
    /// As the wire shows it.
    pub(super) fn info(&self, app: &App) -> TemplateInfo {
        let artifact = self
            .build
            .as_ref()
            .and_then(|row| build::artifact(app, row));
        TemplateInfo {
            id: self.template.id.clone(),
            name: self.template.name.clone(),
            description: String::new(),
            tags: self.tags.iter().map(|tag| tag.tag.clone()).collect(),
            default_tag: (self.tags.iter())
                .any(|tag| tag.tag == DEFAULT_TAG)
                .then(|| DEFAULT_TAG.to_owned()),
            builtin: false,
            canonical_ref: Some(canonical(
                app,
                &self.template.tenant_id,
                &self.template.name,
            )),
            namespace_slug: Some(namespace_of(app, &self.template.tenant_id)),
            visibility: visibility(&self.template),
            runtime_defaults: artifact.map(|artifact| artifact.defaults()),
            created_at: Some(time::rfc3339(self.template.created_at)),
        }
    }
}

/// The namespace of a tenant's templates.
pub(super) fn namespace_of(app: &App, tenant_id: &str) -> String {
    let tenant = app.keys.tenant(tenant_id);
    tenant.map_or_else(|| tenant_id.to_owned(), |tenant| tenant.name.to_string())
}

pub(super) fn canonical(app: &App, tenant_id: &str, name: &str) -> String {
    format!("{}/{name}", namespace_of(app, tenant_id))
}

pub(super) fn visibility(template: &TemplateRow) -> Visibility {
    match template.visibility.as_str() {
        "public" => Visibility::Public,
        _ => Visibility::Private,
    }
}

/// Finds what a reference of a tenant means: one of its own, or a public one. With `any` a template without a build that is ready
/// counts too.
pub(super) fn find_in(
    db: &Connection,
    tenant_id: &str,
    reference: &Reference,
    any: bool,
) -> Result<Option<Found>, StoreError> {
    let template = match &reference.subject {
        Subject::Id(id) => rows::get(db, id)?,
        Subject::Name(name) | Subject::Builtin(name) => rows::by_name(db, tenant_id, name)?,
        Subject::Of(namespace, name) => match tenants::find(db, namespace)? {
            Some(tenant) => rows::by_name(db, &tenant.id, name)?,
            None => None,
        },
    };
    let may_see = |template: &TemplateRow| {
        template.tenant_id == tenant_id || visibility(template) == Visibility::Public
    };
    let Some(template) = template.filter(may_see) else {
        return Ok(None);
    };
    let tags = rows::tags(db, &template.id)?;
    let of_tag = |tag: &str| {
        (tags.iter())
            .find(|known| known.tag == tag)
            .map(|known| known.build_id.clone())
    };
    let build_id = match &reference.which {
        Which::Build(id) => Some(id.clone()),
        Which::Tag(tag) => {
            of_tag(tag).or_else(|| reference.is_latest().then(|| of_tag(DEFAULT_TAG)).flatten())
        }
        Which::Default => of_tag(DEFAULT_TAG),
    };
    let build = match build_id {
        Some(id) => builds::get(db, &id)?.filter(|build| {
            build.template_id == template.id
                && build.status == BuildStatus::Ready.as_str()
                && build.deleted_at.is_none()
        }),
        None => None,
    };
    // Without a word about which build, one that has any tag is there.
    let is_there = build.is_some() || (reference.which == Which::Default && !tags.is_empty());
    Ok((is_there || any).then_some(Found {
        template,
        tags,
        build,
    }))
}

async fn find(app: &App, tenant_id: &str, text: &str, any: bool) -> Result<Found> {
    let reference = Reference::parse(text)?;
    if reference.builtin().is_some() {
        return Err(builtin(text));
    }
    let tenant_id = tenant_id.to_owned();
    app.store
        .read(move |db| find_in(db, &tenant_id, &reference, any))
        .await?
        .ok_or_else(|| reference::not_found(text))
}

/// The same for what is changed: it has to be the tenant's own.
async fn find_own(app: &App, tenant_id: &str, text: &str, any: bool) -> Result<Found> {
    let found = find(app, tenant_id, text, any).await?;
    if found.template.tenant_id == tenant_id {
        return Ok(found);
    }
    Err(Error::new(
        Kind::Forbidden,
        code::PERMISSION_DENIED,
        format!("template {text} is another tenant's: it can be used, and not changed"),
    ))
}

/// Built-in templates stay as they are.
fn builtin(text: &str) -> Error {
    Error::new(
        Kind::Forbidden,
        code::PERMISSION_DENIED,
        format!("template {text} is built in and stays as it is"),
    )
}

/// What a machine starts from that names a build, or is not in the index.
///
/// # Errors
/// `template_not_found`.
pub(super) async fn exact(app: &App, tenant_id: &str, text: &str) -> Result<(Artifact, String)> {
    let found = find(app, tenant_id, text, false).await?;
    let artifact = found
        .build
        .as_ref()
        .and_then(|row| build::artifact(app, row));
    artifact
        .map(|artifact| (artifact, found.template.name))
        .ok_or_else(|| reference::not_found(text))
}

/// What a reference means now, its template's name, and the template's and the build's id: what is named so means the same
/// for ever.
///
/// # Errors
/// `template_not_found`.
pub(super) async fn meaning(
    app: &App,
    tenant_id: &str,
    text: &str,
) -> Result<(Artifact, String, String, String)> {
    let found = find(app, tenant_id, text, false).await?;
    let build = found.build.ok_or_else(|| reference::not_found(text))?;
    let artifact = build::artifact(app, &build).ok_or_else(|| reference::not_found(text))?;
    Ok((artifact, found.template.name, found.template.id, build.id))
}

/// One template.
///
/// # Errors
/// `template_not_found`.
pub async fn get(app: &App, tenant_id: &str, text: &str) -> Result<TemplateInfo> {
    let reference = Reference::parse(text)?;
    match reference.builtin() {
        Some(name) => Ok(builtin_info(app, name)),
        None => Ok(find(app, tenant_id, text, false).await?.info(app)),
    }
}

/// Every template of a tenant: the built-in ones, and those that it built, newest first.
///
/// # Errors
/// When the record cannot be read.
pub async fn list(app: &App, tenant_id: &str) -> Result<Vec<TemplateInfo>> {
    let tenant_id = tenant_id.to_owned();
    let found = app
        .store
        .read(move |db| {
            let mut found = Vec::new();
            for template in rows::list(db)? {
                if template.tenant_id != tenant_id {
                    continue;
                }
                let reference = Reference {
                    subject: Subject::Id(template.id),
                    which: Which::Default,
                };
                found.extend(find_in(db, &tenant_id, &reference, false)?);
            }
            Ok::<_, StoreError>(found)
        })
        .await?;
    let builtin = BUILTINS.iter().map(|name| builtin_info(app, name));
    Ok(builtin
        .chain(found.iter().map(|found| found.info(app)))
        .collect())
}

fn builtin_info(app: &App, name: &str) -> TemplateInfo {
    let layer = app.templates.find_builtin(name).ok();
    TemplateInfo {
        id: format!("{}{name}", id::TEMPLATE),
        name: name.to_owned(),
        description: match name {
            "base" => "Debian with Python, Node.js, git and curl",
            "code-interpreter" => "base with Jupyter kernels, made when it is first asked for",
            _ => "the programs of the server's own host, read-only",
        }
        .to_owned(),
        tags: vec![DEFAULT_TAG.to_owned(), "latest".to_owned()],
        default_tag: Some(DEFAULT_TAG.to_owned()),
        builtin: true,
        canonical_ref: Some(format!("{BUILTIN_NAMESPACE}/{name}")),
        namespace_slug: Some(BUILTIN_NAMESPACE.to_owned()),
        visibility: Visibility::Public,
        runtime_defaults: layer.map(|layer| Artifact::of(&layer).defaults()),
        created_at: None,
    }
}

/// Removes a template. Machines that were made from it go on.
///
/// # Errors
/// `template_not_found`, `permission_denied` for a built-in one, `template_build_conflict` while it is built.
pub async fn delete(app: &App, tenant_id: &str, text: &str) -> Result<()> {
    let template = find_own(app, tenant_id, text, true).await?.template;
    let id = template.id.clone();
    app.store
        .write(move |tx| {
            if builds::unfinished(tx)?
                .iter()
                .any(|row| row.template_id == id)
            {
                return Err(Error::conflict(
                    code::TEMPLATE_BUILD_CONFLICT,
                    "the template is being built",
                )
                .with_action("cancel the build, or wait for it"));
            }
            rows::delete(tx, &id, time::now())?;
            Ok(())
        })
        .await?;
    refresh(app).await
}

/// The tags of a template.
///
/// # Errors
/// `template_not_found`, `permission_denied` for a built-in one.
pub async fn tags(app: &App, tenant_id: &str, text: &str) -> Result<Vec<TemplateTag>> {
    let found = find(app, tenant_id, text, false).await?;
    let shown = found.tags.into_iter().map(|tag| TemplateTag {
        tag: tag.tag,
        build_id: tag.build_id,
        created_at: time::rfc3339(tag.created_at),
    });
    Ok(shown.collect())
}

/// Makes tags mean the build that a reference means.
///
/// # Errors
/// `invalid_request`, `template_not_found`, `permission_denied`.
pub async fn assign_tags(
    app: &App,
    tenant_id: &str,
    text: &str,
    tags: Vec<String>,
) -> Result<TemplateInfo> {
    let found = find_own(app, tenant_id, text, false).await?;
    let build = found.build.ok_or_else(|| {
        Error::conflict(
            code::TEMPLATE_BUILD_CONFLICT,
            format!("{text} means no build: it has no tag {DEFAULT_TAG}"),
        )
        .with_action("name a tag or a build after a colon")
    })?;
    set_tags(app, &build, tags).await
}

/// Makes tags mean a build that is ready.
///
/// # Errors
/// `invalid_request`.
pub(super) async fn set_tags(
    app: &App,
    build: &BuildRow,
    tags: Vec<String>,
) -> Result<TemplateInfo> {
    if tags.is_empty() {
        return Err(Error::invalid("tags: at least one is needed"));
    }
    tags.iter().try_for_each(|tag| reference::check_tag(tag))?;
    let (template_id, build_id) = (build.template_id.clone(), build.id.clone());
    app.store
        .write(move |tx| {
            for tag in &tags {
                rows::set_tag(tx, &template_id, tag, &build_id, time::now())?;
            }
            Ok::<_, StoreError>(())
        })
        .await?;
    refresh(app).await?;
    let exact = format!("{}:{}", build.template_id, build.id);
    Ok(find(app, &build.tenant_id, &exact, false).await?.info(app))
}

/// Takes a tag away. Builds stay, and can be named by id.
///
/// # Errors
/// `template_not_found`, `template_tag_not_found`, `permission_denied`.
pub async fn remove_tag(app: &App, tenant_id: &str, text: &str, tag: &str) -> Result<()> {
    let template = find_own(app, tenant_id, text, true).await?.template;
    let (id, wanted) = (template.id, tag.to_owned());
    let removed = app
        .store
        .write(move |tx| rows::remove_tag(tx, &id, &wanted))
        .await?;
    if !removed {
        let shown: String = tag.chars().take(128).collect();
        let message = format!("template {} has no tag {shown:?}", template.name);
        return Err(Error::not_found(code::TEMPLATE_TAG_NOT_FOUND, message));
    }
    refresh(app).await
}

/// Says who may use a template.
///
/// # Errors
/// `template_not_found`, `permission_denied`.
pub async fn set_visibility(
    app: &App,
    tenant_id: &str,
    text: &str,
    visibility: Visibility,
) -> Result<TemplateInfo> {
    let mut found = find_own(app, tenant_id, text, false).await?;
    let id = found.template.id.clone();
    app.store
        .write(move |tx| rows::set_visibility(tx, &id, visibility.as_str()))
        .await?;
    refresh(app).await?;
    found.template.visibility = visibility.as_str().to_owned();
    Ok(found.info(app))
}
