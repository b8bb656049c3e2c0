//! Images of this server. Importing one reads files of the host, so that is for the command line on it; pulling one from
//! a registry is not.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Path, State},
    http::{Response, StatusCode},
};
use sandhaus_client::wire::{
    ErrorBody, ImageDetails, ImageInfo, ImageLayer, ImageList, Okay, PruneImages, PrunedImages, PullImage,
    PullProgress, TagImage,
};
use sandhaus_sandbox::{
    ImageName, Kind,
    service::images::{self, Credentials, LayerState, Prune, PullStatus},
};
use serde::Serialize;

use super::{
    events::{self, News, event},
    json,
    json::Json,
};
use crate::{
    edge::Edge,
    error::{ApiError, ApiResult, Subject},
};

/// Longest name or password of a registry's user.
const CREDENTIAL_BYTES_MAX: usize = 16 << 10;

/// Images, by name.
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, body = ImageList)))]
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> ApiResult<Response<Body>> {
    let images = edge.service.images().await.map_err(|error| ApiError::of(Subject::Image, error))?;
    let images = images.into_iter().map(info).collect();
    Ok(json(StatusCode::OK, &ImageList { images }))
}

/// Everything known of an image.
#[utoipa::path(get, path = "/v1/images/{name}", tag = "images", params(("name" = String, Path)), responses(
    (status = 200, body = ImageDetails),
    (status = 404, body = ErrorBody, description = "IMAGE_NOT_FOUND"),
))]
pub(super) async fn inspect(
    State(edge): State<Arc<Edge>>,
    Path(name): Path<String>,
) -> ApiResult<Response<Body>> {
    let name = parse(&name)?;
    let details = edge.service.image(name).await.map_err(|error| ApiError::of(Subject::Image, error))?;
    let layers = details.layers.into_iter();
    let wire = ImageDetails {
        image: info(details.image),
        reference: details.reference,
        manifest: details.manifest,
        platform: details.platform,
        env: details.config.env,
        workdir: details.config.workdir,
        user: details.config.user,
        entrypoint: details.config.entrypoint,
        cmd: details.config.cmd,
        layers: layers
            .map(|layer| ImageLayer { digest: layer.digest, size_bytes: layer.size_bytes })
            .collect(),
    };
    Ok(json(StatusCode::OK, &wire))
}

/// Pulls an image from a registry: `progress` events as it goes on, then `done` with the image, or `error`. A second
/// pull of the same image joins the first. It goes on when its clients hang up.
#[utoipa::path(post, path = "/v1/images/pull", tag = "images", request_body = PullImage, responses(
    (status = 200, content_type = "text/event-stream", body = String, description = "events: progress (PullProgress), done (ImageInfo), error (PullFailed)"),
    (status = 400, body = ErrorBody, description = "INVALID_IMAGE"),
    (status = 429, body = ErrorBody, description = "RESOURCE_EXHAUSTED"),
))]
pub(super) async fn pull(
    State(edge): State<Arc<Edge>>,
    Json(request): Json<PullImage>,
) -> ApiResult<Response<Body>> {
    let request = pull_request(request)?;
    let status = edge.service.pull_image(request).await;
    let status = status.map_err(|error| ApiError::of(Subject::Image, error))?;
    Ok(events::follow(status, Subject::Image, told))
}

fn pull_request(request: PullImage) -> ApiResult<images::PullImage> {
    let refuse = |error: sandhaus_sandbox::Error| ApiError::of(Subject::Image, error);
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    if request.username.len() + request.password.len() > CREDENTIAL_BYTES_MAX {
        return Err(ApiError::invalid("username and password are too long"));
    }
    let credentials = given(request.username)
        .map(|username| Credentials::Password { username, password: request.password });
    let platform = given(request.platform).map(|platform| platform.parse()).transpose();
    let reference = images::Reference::parse(&request.reference).map_err(|error| refuse(error.into()))?;
    Ok(images::PullImage {
        name: given(request.name).map(|name| parse(&name)).transpose()?,
        reference,
        platform: platform.map_err(|error: images::ImageError| refuse(error.into()))?,
        credentials,
        replace: request.replace,
    })
}

/// A pull as it stands.
fn told(status: PullStatus) -> News {
    match status.outcome {
        None => News::Progress(event("progress", &progress(&status.layers))),
        Some(Ok(image)) => News::End(event("done", &info(image))),
        Some(Err(failure)) => News::End(events::failed(Subject::Image, failure.kind, failure.message)),
    }
}

fn progress(layers: &[images::PulledLayer]) -> PullProgress {
    let here = |layer: &&images::PulledLayer| matches!(layer.state, LayerState::Done | LayerState::Present);
    PullProgress {
        done_bytes: layers.iter().map(images::PulledLayer::done_bytes).sum(),
        total_bytes: layers.iter().map(|layer| layer.size_bytes).sum(),
        layers_done: layers.iter().filter(here).count() as u64,
        layers: layers.len() as u64,
    }
}

/// Removes what no image needs any more.
#[utoipa::path(post, path = "/v1/images/prune", tag = "images", request_body = PruneImages, responses(
    (status = 200, body = PrunedImages),
))]
pub(super) async fn prune(
    State(edge): State<Arc<Edge>>,
    Json(request): Json<PruneImages>,
) -> ApiResult<Response<Body>> {
    let what = if request.all { Prune::Unused } else { Prune::Nameless };
    let pruned =
        edge.service.prune_images(what).await.map_err(|error| ApiError::of(Subject::Image, error))?;
    let names = pruned.names.iter().map(ToString::to_string).collect();
    Ok(json(StatusCode::OK, &PrunedImages { names, freed_bytes: pruned.freed_bytes }))
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
    Ok(json(StatusCode::OK, &info(image)))
}

fn info(image: images::Image) -> ImageInfo {
    ImageInfo {
        name: image.name.to_string(),
        digest: image.digest,
        kind: word(&image.kind),
        created_at: image.created_at,
        size_bytes: image.size_bytes,
    }
}

/// A word of the domain, as it is written down.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn parse(name: &str) -> ApiResult<ImageName> {
    ImageName::parse(name)
        .map_err(|_| ApiError::new(Kind::Invalid, Subject::Image, format!("invalid image name: {name:?}")))
}
