//! The OpenAPI document: made from the handlers, checked in as `openapi/nullspace.json`.

use std::sync::OnceLock;

use axum::body::Bytes;
use utoipa::{
    Modify, OpenApi,
    openapi::{
        path::{Operation, PathItem},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::router::OpenApiRouter;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Nullspace",
        description = "Isolated Linux machines for AI agents. `/v1/machines` and `/v1/sandboxes` are the same routes; error codes say `machine` or `sandbox` as the path does."
    ),
    modifiers(&Key),
    security(("key" = []))
)]
struct Document;

struct Key;

impl Modify for Key {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key"))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("key", SecurityScheme::Http(scheme));
    }
}

/// The document.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let mut router = OpenApiRouter::with_openapi(Document::openapi()).merge(super::routes());
    let mut document = router.to_openapi();
    // The same handlers under several prefixes: the other sets of names say which.
    for (path, item) in &mut document.paths.paths {
        let word = match path.split('/').nth(2) {
            Some("sandboxes") => "sandbox",
            Some("volumes") => "volume",
            _ => continue,
        };
        for operation in operations(item) {
            if let Some(id) = &mut operation.operation_id
                && !(word == "volume" && id.contains(word))
            {
                *id = format!("{word}_{id}");
            }
        }
    }
    document
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.patch,
    ]
    .into_iter()
    .flatten()
}

/// The document as it is served.
pub(super) fn json() -> Bytes {
    static JSON: OnceLock<Bytes> = OnceLock::new();
    JSON.get_or_init(|| document().to_pretty_json().unwrap_or_default().into())
        .clone()
}
