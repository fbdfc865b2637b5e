//! `/v1/machines`: create, list, get, delete, time limit.

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use nullspace_api::{
    ErrorBody,
    machine::{
        CreateMachineRequest, DeleteMachineResponse, GetMachineQuery, ListMachinesQuery,
        MACHINE_FIELDS, MachineInfo, SetTimeoutRequest, SetTimeoutResponse,
    },
    page::TokenPage,
    time,
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    extract::{Json, Path, Query, claim},
    fields::{self, project},
};
use crate::{
    app::{AppState, Caller, machine, pool, preview, snapshot, template, volume},
    error::Result,
};

/// Names the route in idempotency scopes: both prefixes are one route.
const CREATE: &str = "POST /v1/machines";

pub(super) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, delete))
        .routes(routes!(set_timeout))
}

/// Create a machine. Answers when it runs.
#[utoipa::path(post, path = "/", tag = "machines",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body give the same machine")),
    request_body = CreateMachineRequest,
    responses(
        (status = 201, body = MachineInfo),
        (status = 400, body = ErrorBody, description = "`invalid_request`, `volume_invalid_mount_path`, `volume_overlapping_mounts`"),
        (status = 404, body = ErrorBody, description = "`template_not_found`, `snapshot_not_found`, `not_found` (a volume, of the request or of the snapshot), `warm_pool_not_found`"),
        (status = 409, body = ErrorBody, description = "`idempotency_conflict`, `transition_in_progress`, `warm_pool_conflict`, `incompatible_snapshot`"),
        (status = 429, body = ErrorBody, description = "`capacity_exceeded`"),
        (status = 501, body = ErrorBody, description = "`not_implemented`"),
        (status = 503, body = ErrorBody, description = "`no_eligible_runtime_host`, `template_not_ready`, `warm_pool_unavailable`"),
    ))]
async fn create(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Json(mut request): Json<CreateMachineRequest>,
) -> Result<Response> {
    let claim = claim(&headers, &caller, CREATE.to_owned(), &request)?;
    let asked = pool::ask(&app, &caller, &mut request)?;
    let volumes = request.volumes.take().unwrap_or_default();
    volumes
        .iter()
        .try_for_each(|volume| caller.must(volume::mount::need(volume)))?;
    if request.snapshot_id.is_some() {
        let checkout = asked.map(|asked| asked.of_snapshot()).transpose()?;
        let (snapshot_id, row) = machine::plan_from_snapshot(&app, request, &caller)?;
        let row = snapshot::make(&app, &snapshot_id, row, &volumes, claim).await?;
        let info = MachineInfo {
            traffic_access_token: preview::traffic_token(&app, &row),
            warm_pool_checkout: checkout,
            ..machine::info(&row)
        };
        return Ok((StatusCode::CREATED, Json(info)).into_response());
    }
    if let Some(name) = &request.template {
        template::ensure(&app, &caller.tenant.id, name).await?;
    }
    let mut new = machine::plan(&app, request, &caller)?;
    new.volumes = volume::mount::plan(&app, &new.tenant_id, &volumes, &new.cwd).await?;
    let (row, checkout) = pool::create_machine(&app, new, claim, asked).await?;
    let info = MachineInfo {
        traffic_access_token: preview::traffic_token(&app, &row),
        warm_pool_checkout: checkout,
        ..machine::info(&row)
    };
    Ok((StatusCode::CREATED, Json(info)).into_response())
}

/// List machines, newest first; those that ended only when `state` asks for them.
#[utoipa::path(get, path = "/", tag = "machines", params(ListMachinesQuery),
    responses(
        (status = 200, body = TokenPage<MachineInfo>),
        (status = 400, body = ErrorBody, description = "`invalid_request`, `invalid_fields`"),
    ))]
async fn list(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ListMachinesQuery>,
) -> Result<Response> {
    let fields = fields(query.fields.as_deref())?;
    let page = machine::list(&app, &caller, &query).await?;
    let items: Vec<MachineInfo> = page.rows.iter().map(machine::info).collect();
    let has_next = page.next_token.is_some();
    Ok(match fields {
        None => Json(TokenPage {
            items,
            next_token: page.next_token,
            has_next,
        })
        .into_response(),
        Some(fields) => Json(TokenPage {
            items: items
                .iter()
                .map(|item| project(item, &fields))
                .collect::<Result<Vec<_>>>()?,
            next_token: page.next_token,
            has_next,
        })
        .into_response(),
    })
}

/// Get a machine. One that ended can be read for some days.
#[utoipa::path(get, path = "/{id}", tag = "machines", params(("id" = String, Path), GetMachineQuery),
    responses(
        (status = 200, body = MachineInfo),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
    ))]
async fn get(
    State(app): State<AppState>,
    Path(id): Path<String>,
    Query(query): Query<GetMachineQuery>,
) -> Result<Response> {
    let fields = fields(query.fields.as_deref())?;
    let row = machine::get(&app, &id).await?;
    let info = machine::info(&row);
    Ok(match fields {
        None => Json(info).into_response(),
        Some(fields) => Json(project(&info, &fields)?).into_response(),
    })
}

/// Delete a machine. Deleting one that ended is fine.
#[utoipa::path(delete, path = "/{id}", tag = "machines", params(("id" = String, Path)),
    responses(
        (status = 200, body = DeleteMachineResponse),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
    ))]
async fn delete(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<DeleteMachineResponse>> {
    let row = machine::destroy(&app, &id, Some(&caller.key_id)).await?;
    Ok(Json(DeleteMachineResponse {
        status: machine::info(&row).status,
        id,
    }))
}

/// Set a machine's time limit, counted from now.
#[utoipa::path(post, path = "/{id}/timeout", tag = "machines", params(("id" = String, Path)),
    request_body = SetTimeoutRequest,
    responses(
        (status = 200, body = SetTimeoutResponse),
        (status = 400, body = ErrorBody, description = "`invalid_request`"),
        (status = 404, body = ErrorBody, description = "`machine_not_found`"),
        (status = 409, body = ErrorBody, description = "`machine_not_ready`"),
    ))]
async fn set_timeout(
    State(app): State<AppState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Json(request): Json<SetTimeoutRequest>,
) -> Result<Json<SetTimeoutResponse>> {
    let row = machine::set_time_limit(
        &app,
        &id,
        Some(request.timeout_ms),
        request.timeout_action,
        Some(&caller.key_id),
    )
    .await?;
    Ok(Json(SetTimeoutResponse {
        timeout_ms: row.timeout_ms,
        timeout_action: machine::timeout_action(&row),
        timeout_at: row.timeout_at.map(time::rfc3339),
        remaining_ms: machine::remaining_ms(&row),
    }))
}

fn fields(text: Option<&str>) -> Result<Option<Vec<String>>> {
    fields::asked_for(text, "machine", MACHINE_FIELDS)
}
