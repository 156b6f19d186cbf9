//! Errors as the REST view shows them.

use axum::{
    Json,
    extract::rejection::{PathRejection, QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tracing::warn;
use utoipa::ToSchema;

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum Error {
    /// The request does not make sense.
    Invalid(String),
    /// What was asked for does not exist.
    NotFound(String),
    /// Nothing can be changed here.
    NotAllowed,
    /// The database failed.
    Database(sqlx::Error),
}

/// The body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// What is wrong, for a person.
    error: String,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::Invalid(reason) => (StatusCode::BAD_REQUEST, reason),
            Self::NotFound(reason) => (StatusCode::NOT_FOUND, reason),
            Self::NotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here".into()),
            Self::Database(error) => {
                warn!(%error, "the database failed");
                (StatusCode::SERVICE_UNAVAILABLE, "the database failed; the manager's log says why".into())
            }
        };
        (status, Json(Problem { error })).into_response()
    }
}

impl From<QueryRejection> for Error {
    fn from(rejection: QueryRejection) -> Self {
        Self::Invalid(rejection.body_text())
    }
}

impl From<PathRejection> for Error {
    fn from(rejection: PathRejection) -> Self {
        Self::Invalid(rejection.body_text())
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}
