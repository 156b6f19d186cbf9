//! The routes.

use super::{
    error::{Error, Problem},
    view::{Cluster, Instance, Page, Query},
};
use crate::{db::Db, name::ClusterName, time::Time};
use axum::{
    Json,
    extract::{
        self, Path, State,
        rejection::{PathRejection, QueryRejection},
    },
};

type Asked = Result<extract::Query<Query>, QueryRejection>;

/// All clusters, by name.
#[utoipa::path(get, path = "/api/v1/clusters", responses((status = OK, body = Page<Cluster>)))]
pub(super) async fn clusters(State(db): State<Db>) -> Result<Json<Page<Cluster>>, Error> {
    let counts = db.counts(Time::now()).await?;
    let clusters = db.clusters().await?;
    let items: Vec<_> = clusters.into_iter().map(|cluster| Cluster::new(cluster, &counts)).collect();
    Ok(Json(Page { total: items.len().try_into().unwrap_or(i64::MAX), items }))
}

/// One cluster.
#[utoipa::path(get, path = "/api/v1/clusters/{name}",
    params(("name" = String, Path, description = "The name of the cluster")),
    responses((status = OK, body = Cluster), (status = NOT_FOUND, body = Problem), (status = BAD_REQUEST, body = Problem)))]
pub(super) async fn cluster(
    State(db): State<Db>,
    name: Result<Path<ClusterName>, PathRejection>,
) -> Result<Json<Cluster>, Error> {
    let Path(name) = name?;
    let cluster = db.cluster(&name).await?;
    let cluster = cluster.ok_or_else(|| Error::NotFound(format!("there is no cluster \"{name}\"")))?;
    Ok(Json(Cluster::new(cluster, &db.counts(Time::now()).await?)))
}

/// Schedulers, active or not.
#[utoipa::path(get, path = "/api/v1/schedulers", params(Query),
    responses((status = OK, body = Page<Instance>), (status = BAD_REQUEST, body = Problem)))]
pub(super) async fn schedulers(State(db): State<Db>, query: Asked) -> Result<Json<Page<Instance>>, Error> {
    instances(&db, true, query).await
}

/// Seed peers and peers, active or not.
#[utoipa::path(get, path = "/api/v1/peers", params(Query),
    responses((status = OK, body = Page<Instance>), (status = BAD_REQUEST, body = Problem)))]
pub(super) async fn peers(State(db): State<Db>, query: Asked) -> Result<Json<Page<Instance>>, Error> {
    instances(&db, false, query).await
}

async fn instances(db: &Db, schedulers: bool, query: Asked) -> Result<Json<Page<Instance>>, Error> {
    let extract::Query(query) = query?;
    let now = Time::now();
    let (rows, total) = db.registered(schedulers, &query.filter(), query.page(), now).await?;
    let items = rows.into_iter().map(|row| Instance::new(row, now)).collect();
    Ok(Json(Page { items, total }))
}
