//! `/v1/templates`: templates by reference, tags, aliases, names.
//!
//! A reference is one segment of the path, percent-encoded with its slash: `acme%2Fx%3Astable`.

use axum::{Extension, extract::State, response::IntoResponse, response::Response};
use http::StatusCode;
use nullspace_api::{
    ErrorBody,
    template::{
        AssignTagsRequest, ClaimNameRequest, RenameTemplateRequest, SetVisibilityRequest,
        TEMPLATE_FIELDS, TemplateAlias, TemplateInfo, TemplateNameClaim, TemplateNamespace,
        TemplateQuery, TemplateTag,
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query},
    fields,
};
use crate::{
    app::{AppState, Caller, template::named},
    error::Result,
};

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_templates))
        .routes(routes!(get_template, delete_template))
        .routes(routes!(list_template_tags, assign_template_tags))
        .routes(routes!(remove_template_tag))
        .routes(routes!(set_template_visibility))
        .routes(routes!(rename_template))
        .routes(routes!(list_template_aliases))
        .routes(routes!(remove_template_alias))
        .routes(routes!(claim_template_name))
        .routes(routes!(release_template_name))
        .routes(routes!(get_template_namespace))
}

/// List templates: the built-in ones first, then those that were built, newest first.
#[utoipa::path(get, path = "/v1/templates", tag = "templates", params(TemplateQuery),
    responses((status = 200, body = Vec<TemplateInfo>), (status = 400, body = ErrorBody)))]
async fn list_templates(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<TemplateQuery>,
) -> Result<Response> {
    let fields = fields::asked_for(query.fields.as_deref(), "template", &TEMPLATE_FIELDS)?;
    let templates = named::list(&app, &caller.tenant.id).await?;
    Ok(match fields {
        None => Json(templates).into_response(),
        Some(fields) => {
            let projected = templates
                .iter()
                .map(|template| fields::project(template, &fields));
            Json(projected.collect::<Result<Vec<_>>>()?).into_response()
        }
    })
}

/// Get a template.
#[utoipa::path(get, path = "/v1/templates/refs/{ref}", tag = "templates", params(("ref" = String, Path), TemplateQuery),
    responses((status = 200, body = TemplateInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn get_template(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(reference): Path<String>,
    Query(query): Query<TemplateQuery>,
) -> Result<Response> {
    let fields = fields::asked_for(query.fields.as_deref(), "template", &TEMPLATE_FIELDS)?;
    let template = named::get(&app, &caller.tenant.id, &reference).await?;
    Ok(match fields {
        None => Json(template).into_response(),
        Some(fields) => Json(fields::project(&template, &fields)?).into_response(),
    })
}

/// Delete a template. Machines that were made from it go on.
#[utoipa::path(delete, path = "/v1/templates/refs/{ref}", tag = "templates", params(("ref" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorBody, description = "it is built in"),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody, description = "it is being built")))]
async fn delete_template(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(reference): Path<String>,
) -> Result<StatusCode> {
    named::delete(&app, &caller.tenant.id, &reference).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// List the tags of a template.
#[utoipa::path(get, path = "/v1/templates/refs/{ref}/tags", tag = "templates", params(("ref" = String, Path)),
    responses((status = 200, body = Vec<TemplateTag>), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_template_tags(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(reference): Path<String>,
) -> Result<Json<Vec<TemplateTag>>> {
    named::tags(&app, &caller.tenant.id, &reference)
        .await
        .map(Json)
}

/// Make tags mean the build that the reference means.
#[utoipa::path(post, path = "/v1/templates/refs/{ref}/tags", tag = "templates", params(("ref" = String, Path)),
    request_body = AssignTagsRequest,
    responses((status = 200, body = TemplateInfo), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn assign_template_tags(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(reference): Path<String>,
    Json(request): Json<AssignTagsRequest>,
) -> Result<Json<TemplateInfo>> {
    let tagged = named::assign_tags(&app, &caller.tenant.id, &reference, request.tags).await?;
    Ok(Json(tagged))
}

/// Take a tag away.
#[utoipa::path(delete, path = "/v1/templates/refs/{ref}/tags/{tag}", tag = "templates",
    params(("ref" = String, Path), ("tag" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn remove_template_tag(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((reference, tag)): Path<(String, String)>,
) -> Result<StatusCode> {
    named::remove_tag(&app, &caller.tenant.id, &reference, &tag).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Say who may use a template.
#[utoipa::path(patch, path = "/v1/templates/refs/{ref}/visibility", tag = "templates", params(("ref" = String, Path)),
    request_body = SetVisibilityRequest,
    responses((status = 200, body = TemplateInfo), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn set_template_visibility(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(reference): Path<String>,
    Json(request): Json<SetVisibilityRequest>,
) -> Result<Json<TemplateInfo>> {
    let changed =
        named::set_visibility(&app, &caller.tenant.id, &reference, request.visibility).await?;
    Ok(Json(changed))
}

/// Give a template another name. The old one goes on to lead to it.
#[utoipa::path(post, path = "/v1/templates/refs/{ref}/rename", tag = "templates", params(("ref" = String, Path)),
    request_body = RenameTemplateRequest,
    responses((status = 200, body = TemplateInfo), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, body = ErrorBody, description = "the name is taken")))]
async fn rename_template(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(reference): Path<String>,
    Json(request): Json<RenameTemplateRequest>,
) -> Result<Json<TemplateInfo>> {
    let renamed = named::rename(&app, &caller, &reference, &request.new_name).await?;
    Ok(Json(renamed))
}

/// List the names that a template had.
#[utoipa::path(get, path = "/v1/templates/refs/{ref}/aliases", tag = "templates", params(("ref" = String, Path)),
    responses((status = 200, body = Vec<TemplateAlias>), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn list_template_aliases(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(reference): Path<String>,
) -> Result<Json<Vec<TemplateAlias>>> {
    named::aliases(&app, &caller.tenant.id, &reference)
        .await
        .map(Json)
}

/// Take a name away that a template had.
#[utoipa::path(delete, path = "/v1/templates/refs/{ref}/aliases/{alias}", tag = "templates",
    params(("ref" = String, Path), ("alias" = String, Path)),
    responses((status = 204), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn remove_template_alias(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path((reference, alias)): Path<(String, String)>,
) -> Result<StatusCode> {
    named::remove_alias(&app, &caller.tenant.id, &reference, &alias).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Keep a name for a quarter of an hour.
#[utoipa::path(post, path = "/v1/templates/claims", tag = "templates", request_body = ClaimNameRequest,
    responses((status = 201, body = TemplateNameClaim), (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "the name is taken")))]
async fn claim_template_name(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<ClaimNameRequest>,
) -> Result<(StatusCode, Json<TemplateNameClaim>)> {
    let claim = named::claim(&app, &caller, &request.template_ref).await?;
    Ok((StatusCode::CREATED, Json(claim)))
}

/// Give a name back.
#[utoipa::path(delete, path = "/v1/templates/claims/{claim_token}", tag = "templates",
    params(("claim_token" = String, Path)), responses((status = 204), (status = 404, body = ErrorBody)))]
async fn release_template_name(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(token): Path<String>,
) -> Result<StatusCode> {
    named::release(&app, &token, &caller.key_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Get a namespace.
#[utoipa::path(get, path = "/v1/templates/namespaces/{slug}", tag = "templates", params(("slug" = String, Path)),
    responses((status = 200, body = TemplateNamespace), (status = 404, body = ErrorBody)))]
async fn get_template_namespace(
    Extension(caller): Extension<Caller>,
    Path(slug): Path<String>,
) -> Result<Json<TemplateNamespace>> {
    named::namespace(&caller, &slug).map(Json)
}
