//! The routes for git's settings, and for passwords that are to be kept.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
};
use sandhaus_protocol::git::{
    GitAuthenticateRequest, GitConfigQuery, GitConfigResponse, GitConfigureUserRequest, GitSetConfigRequest,
};

use super::{
    address::{check_credential, is_host, without_password},
    names::check_setting,
    program::Call,
    refusal, repository,
};
use crate::{
    agent::Agent,
    error::{Error, Result},
};

/// Longest value of a setting.
const VALUE_BYTES_MAX: usize = 64 * 1024;

/// Longest name of a host.
const HOST_BYTES_MAX: usize = 512;

/// Git's status for a setting that is not there.
const NOT_SET: i32 = 1;

/// For whom passwords are kept where nobody is named.
const DEFAULT_HOST: &str = "github.com";
const DEFAULT_PROTOCOL: &str = "https";

/// Where settings are: the flag that says so, and the directory to be in.
struct Scope {
    flag: &'static str,
    directory: String,
}

impl Scope {
    async fn of(agent: &Agent, scope: Option<&String>, path: Option<&String>) -> Result<Self> {
        let path = path.map(String::as_str).filter(|path| !path.is_empty());
        let flag = match scope.map_or("", String::as_str) {
            "" | "global" => "--global",
            "system" => "--system",
            "local" => {
                let path =
                    path.ok_or_else(|| Error::invalid("scope local needs the path of a repository"))?;
                return Ok(Self { flag: "--local", directory: repository(agent, path).await? });
            }
            other => {
                return Err(Error::invalid(format_args!(
                    "unknown scope {other}: say global, local or system"
                )));
            }
        };
        Ok(Self { flag, directory: "/".to_owned() })
    }

    /// `git config` in this scope.
    fn call(&self, words: &[&str]) -> Call<'_> {
        words.iter().fold(Call::new(&self.directory, &["config", self.flag]), |call, word| call.word(*word))
    }

    async fn set(&self, agent: &Arc<Agent>, key: &str, value: &str) -> Result<()> {
        let output = self.call(&["--replace-all", "--", key, value]).output(agent).await?;
        match output.status {
            0 => Ok(()),
            _ if self.flag == "--local" && output.messages.contains("inside a git repository") => {
                Err(refusal::no_repository(&self.directory))
            }
            _ => Err(refusal::of(&output)),
        }
    }
}

fn check_value(value: &str) -> Result<()> {
    if value.len() > VALUE_BYTES_MAX || value.contains('\0') {
        return Err(Error::invalid(format_args!(
            "a value has at most {VALUE_BYTES_MAX} bytes, none of them NUL"
        )));
    }
    Ok(())
}

/// `GET /git/config`.
pub(super) async fn get(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<GitConfigQuery>,
) -> Result<Json<GitConfigResponse>> {
    check_setting(&query.key)?;
    let scope = Scope::of(&agent, query.scope.as_ref(), query.path.as_ref()).await?;
    let output = scope.call(&["--null", "--get", "--", &query.key]).output(&agent).await?;
    match output.status {
        0 => {
            let value = String::from_utf8_lossy(&output.text);
            let value = without_password(value.strip_suffix('\0').unwrap_or(&value));
            Ok(Json(GitConfigResponse { value: Some(value) }))
        }
        NOT_SET => Ok(Json(GitConfigResponse { value: None })),
        _ if output.messages.contains("inside a git repository") => {
            Err(refusal::no_repository(&scope.directory))
        }
        _ => Err(refusal::of(&output)),
    }
}

/// `POST /git/config`.
pub(super) async fn set(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitSetConfigRequest>,
) -> Result<StatusCode> {
    check_setting(&request.key)?;
    check_value(&request.value)?;
    let scope = Scope::of(&agent, request.scope.as_ref(), request.path.as_ref()).await?;
    scope.set(&agent, &request.key, &request.value).await?;
    Ok(StatusCode::OK)
}

/// `POST /git/config/user`.
pub(super) async fn set_user(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitConfigureUserRequest>,
) -> Result<StatusCode> {
    for value in [&request.name, &request.email] {
        check_value(value)?;
        if value.trim().is_empty() {
            return Err(Error::invalid("name and email are required"));
        }
    }
    let scope = Scope::of(&agent, request.scope.as_ref(), request.path.as_ref()).await?;
    scope.set(&agent, "user.name", &request.name).await?;
    scope.set(&agent, "user.email", &request.email).await?;
    Ok(StatusCode::OK)
}

/// `POST /git/credentials`.
pub(super) async fn store_credentials(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitAuthenticateRequest>,
) -> Result<StatusCode> {
    let or = |text: Option<String>, default: &str| {
        text.filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned())
    };
    let (host, protocol) = (or(request.host, DEFAULT_HOST), or(request.protocol, DEFAULT_PROTOCOL));
    if host.len() > HOST_BYTES_MAX || !is_host(&host) {
        return Err(Error::invalid(format_args!("{host:?} is no name of a host")));
    }
    if !matches!(protocol.as_str(), "http" | "https") {
        return Err(Error::invalid(format_args!(
            "passwords are kept for http and https, not for {protocol:?}"
        )));
    }
    if request.username.is_empty() || request.password.is_empty() {
        return Err(Error::invalid("username and password are required"));
    }
    check_credential(&request.username)?;
    check_credential(&request.password)?;
    let pair = format!(
        "protocol={protocol}\nhost={host}\nusername={}\npassword={}\n\n",
        request.username, request.password
    );
    // The pair first: a helper that has nothing to give would only hide the failure.
    Call::new("/", &["credential-store", "store"]).input(pair.into_bytes()).run(&agent).await?;
    let scope = Scope::of(&agent, None, None).await?;
    scope.set(&agent, "credential.helper", "store").await?;
    Ok(StatusCode::OK)
}
