//! Images of this server. Importing one reads files of the host, so that is for the command line on it.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, State},
    http::{Response, StatusCode},
};
use sandhaus_client::wire::{ErrorBody, ImageInfo, ImageList, Okay, TagImage};
use sandhaus_sandbox::ImageName;
use serde::Serialize;

use super::{json, json::Json};
use crate::{
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// Images, by name.
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, body = ImageList)))]
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> ApiResult<Response<Body>> {
    let images = edge.service.images().await.map_err(|error| ApiError::of(Subject::Image, error))?;
    let images = images
        .into_iter()
        .map(|image| ImageInfo {
            name: image.name.to_string(),
            digest: image.digest,
            kind: word(&image.kind),
            created_at: image.created_at,
            size_bytes: image.size_bytes,
        })
        .collect();
    Ok(json(StatusCode::OK, &ImageList { images }))
}

/// Removes an image's name; its content goes with the last name of it.
#[utoipa::path(delete, path = "/v1/images/{name}", tag = "images", params(("name" = String, Path)), responses(
    (status = 200, body = Okay),
    (status = 404, body = ErrorBody, description = "IMAGE_NOT_FOUND"),
    (status = 409, body = ErrorBody, description = "IMAGE_IN_USE"),
))]
pub(super) async fn remove(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
) -> ApiResult<Response<Body>> {
    let name = parse(&name)?;
    edge.service.remove_image(name).await.map_err(|error| ApiError::of(Subject::Image, error))?;
    Ok(json(StatusCode::OK, &Okay { ok: true }))
}

/// Gives an image a further name; if that stands for another image, it moves.
#[utoipa::path(post, path = "/v1/images/{name}/tag", tag = "images", params(("name" = String, Path)), request_body = TagImage, responses(
    (status = 200, body = ImageInfo),
    (status = 400, body = ErrorBody, description = "INVALID_IMAGE"),
    (status = 404, body = ErrorBody, description = "IMAGE_NOT_FOUND"),
))]
pub(super) async fn tag(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
    Json(request): Json<TagImage>,
) -> ApiResult<Response<Body>> {
    let (name, tag) = (parse(&name)?, parse(&request.tag)?);
    let image =
        edge.service.tag_image(name, tag).await.map_err(|error| ApiError::of(Subject::Image, error))?;
    let info = ImageInfo {
        name: image.name.to_string(),
        digest: image.digest,
        kind: word(&image.kind),
        created_at: image.created_at,
        size_bytes: image.size_bytes,
    };
    Ok(json(StatusCode::OK, &info))
}

/// A word of the domain, as it is written down.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn parse(name: &str) -> ApiResult<ImageName> {
    ImageName::parse(name).map_err(|_| {
        ApiError::new(
            sandhaus_sandbox::Kind::Invalid,
            Subject::Image,
            format!("invalid image name: {name:?}"),
        )
    })
}
