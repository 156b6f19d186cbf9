//! The read-only REST view, and its own description in OpenAPI.

mod error;
mod routes;
#[cfg(test)]
mod tests;
mod view;

use crate::{db::Db, metrics::Metrics};
use axum::{
    Json, Router,
    extract::{MatchedPath, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use error::Error;
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Where the description is.
const OPENAPI_PATH: &str = "/api/v1/openapi.json";

#[derive(OpenApi)]
#[openapi(info(
    title = "Darter manager",
    description = "What the manager knows: clusters and their configuration, schedulers, seed peers and peers."
))]
struct Description;

/// All routes of the REST view.
pub(crate) fn router(db: Db, metrics: Metrics) -> Router {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(routes::clusters))
        .routes(routes!(routes::cluster))
        .routes(routes!(routes::schedulers))
        .routes(routes!(routes::peers))
        .split_for_parts();
    router
        .route(OPENAPI_PATH, get(async move || Json(description)))
        .method_not_allowed_fallback(async || Error::NotAllowed)
        .fallback(async || Error::NotFound("there is nothing at this path; see /api/v1/openapi.json".into()))
        .layer(middleware::from_fn_with_state(metrics, count))
        .with_state(db)
}

/// Counts the request under its route, not its path: a path is chosen by the asker.
async fn count(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    metrics.count("rest", route.unwrap_or_default(), response.status().as_str().to_owned());
    response
}
