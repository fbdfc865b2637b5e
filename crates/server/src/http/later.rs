//! Routes of the wire that this server does not have yet: a clear refusal instead of a 404.

use axum::{Router, routing::any};

use crate::{app::AppState, error::Error};

/// Under a machine, by feature.
const OF_A_MACHINE: &[(&str, &[&str])] = &[("desktops", &["desktop", "desktop/{*rest}"])];

pub(super) fn routes() -> Router<AppState> {
    let mut router = Router::new();
    let refuse = |what: &'static str| any(move || async move { Error::not_implemented(what) });
    for &(what, paths) in OF_A_MACHINE {
        for path in paths {
            for prefix in ["machines", "sandboxes"] {
                router = router.route(&format!("/v1/{prefix}/{{id}}/{path}"), refuse(what));
            }
        }
    }
    router
}
