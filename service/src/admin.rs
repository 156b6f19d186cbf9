//! The admin server of every service: `/metrics`, `/healthz`, `/readyz`.

mod readiness;
#[cfg(test)]
mod tests;

pub use readiness::Readiness;

use crate::http;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The media type of the OpenMetrics text format 1.0.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The `[admin]` section of a configuration file. Each role has its own default port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the admin server listens, as `ip:port`.
    pub listen: SocketAddr,
}

/// Serves until shutdown:
///
/// - `GET /metrics`: all metrics of the registry in the OpenMetrics text format;
/// - `GET /healthz`: 200 as long as the process answers;
/// - `GET /readyz`: 200 if every part is ready, else 503 with a line `part: reason` for each that is not.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Registry>,
    ready: Readiness,
    shutdown: CancellationToken,
) {
    http::serve(listener, router(metrics, ready), shutdown).await;
}

fn router(metrics: Arc<Registry>, ready: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics).with_state(metrics))
        .route("/readyz", get(show_readiness).with_state(ready))
        .route("/healthz", get(async || "ok\n"))
}

async fn show_metrics(State(metrics): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &metrics) {
        Ok(()) => ([(CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn show_readiness(State(ready): State<Readiness>) -> Response {
    let reasons = ready.reasons();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let lines: String = reasons.into_iter().map(|(part, reason)| format!("{part}: {reason}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines).into_response()
}
