//! The pool of sandboxes that are kept ready.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{Response, StatusCode},
};
use sandhaus_client::wire::{PoolImageInfo, PoolInfo};
use sandhaus_sandbox::pool::{Keeping, PoolStatus};

use super::{json, json::Ignored};
use crate::edge::Edge;

/// The pool as it stands.
#[utoipa::path(get, path = "/v1/pool", tag = "pool", responses((status = 200, body = PoolInfo)))]
pub(super) async fn get(State(edge): State<Arc<Edge>>) -> Response<Body> {
    answer(edge.service.pool())
}

/// Lets everything in the pool go and keeps it empty until it is filled again or the server starts anew. Answers when it
/// is empty, after at most a minute.
#[utoipa::path(post, path = "/v1/pool/drain", tag = "pool", responses((status = 200, body = PoolInfo)))]
pub(super) async fn drain(State(edge): State<Arc<Edge>>, _: Ignored) -> Response<Body> {
    answer(edge.service.drain_pool().await)
}

/// Keeps the pool filled again. Answers when it is, or when it is known why not, after at most a minute.
#[utoipa::path(post, path = "/v1/pool/fill", tag = "pool", responses((status = 200, body = PoolInfo)))]
pub(super) async fn fill(State(edge): State<Arc<Edge>>, _: Ignored) -> Response<Body> {
    answer(edge.service.fill_pool().await)
}

fn answer(status: PoolStatus) -> Response<Body> {
    let state = match status.keeping {
        Keeping::Off => "off",
        Keeping::Filled => "filled",
        Keeping::Drained => "drained",
    };
    let images = status.images.into_iter().map(|image| PoolImageInfo {
        image: image.image.to_string(),
        digest: image.digest.unwrap_or_default(),
        wanted: image.wanted,
        idle: image.idle,
        warming: image.warming,
        hits: image.hits,
        misses: image.misses,
        problem: image.problem,
    });
    json(StatusCode::OK, &PoolInfo { state: state.to_owned(), images: images.collect() })
}
