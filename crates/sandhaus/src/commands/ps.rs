//! `sandhaus ps`: the sandboxes of a server.

use std::process::ExitCode;

use anyhow::{Context, Result};
use jiff::{Timestamp, Unit};
use sandhaus_client::wire::{ListSessions, SessionInfo};

use crate::{
    cli::{Output, PsArguments},
    config::Config,
    output::{Table, print, print_json, visible},
    server::{Server, explain},
    spelling::CalledAs,
};

/// Prints the list.
pub(crate) async fn ps(arguments: &PsArguments, config: &Config, called_as: CalledAs) -> Result<ExitCode> {
    let mut filter = ListSessions { all: arguments.all, ..ListSessions::default() };
    for label in &arguments.labels {
        let value =
            label.value.clone().with_context(|| format!("label {} needs a value: K=V", label.name))?;
        filter.labels.insert(label.name.clone(), value);
    }
    let server = Server::find(&arguments.server, config)?;
    let sessions = server.client().list(&filter).await.map_err(explain)?;
    match (arguments.output, called_as) {
        (Output::Json, _) => print_json(&sessions)?,
        (Output::Table, CalledAs::Sandhaus) => print(&table(&sessions, Timestamp::now()))?,
        (Output::Table, CalledAs::Sandkasten) => {
            print(&table_of_sandkasten(&sessions, &jiff::Zoned::now()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(sessions: &[SessionInfo], now: Timestamp) -> String {
    let mut table = Table::new(["ID", "NAME", "IMAGE", "STATUS", "CREATED", "EXPIRES", "CWD"]);
    for session in sessions {
        table.row([
            &session.id,
            session.name.as_deref().unwrap_or_default(),
            &session.image,
            &session.status,
            &ago(&session.created_at, now),
            &end(session, now),
            &session.cwd,
        ]);
    }
    table.render()
}

/// The older tool's table: fixed widths, a line below the head, the time of day for what was made today.
fn table_of_sandkasten(sessions: &[SessionInfo], now: &jiff::Zoned) -> String {
    let row = |id: &str, image: &str, status: &str, created: &str, cwd: &str| {
        format!("{id:36} {image:12} {status:10} {created:12} {cwd}\n")
    };
    let mut text = row("SESSION ID", "IMAGE", "STATUS", "CREATED", "CWD");
    text.push_str(&row(&"-".repeat(36), &"-".repeat(12), &"-".repeat(10), &"-".repeat(12), "---"));
    for session in sessions {
        let created = match session.created_at.parse::<Timestamp>() {
            Ok(time) => {
                let time = time.to_zoned(now.time_zone().clone());
                let format = if time.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d" };
                time.strftime(format).to_string()
            }
            Err(_) => visible(&session.created_at),
        };
        let [id, image, status, cwd] =
            [&session.id, &session.image, &session.status, &session.cwd].map(|cell| visible(cell));
        text.push_str(&row(&id, &image, &status, &created, &cwd));
    }
    text
}

/// How the time begins that stands for no end.
const NEVER: &str = "9999-";

/// How long ago a time was; a time that is not one is shown as it came.
fn ago(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => format!("{} ago", roughly(time, now)),
        Err(_) => time.to_owned(),
    }
}

/// When it ended, or will end.
fn end(session: &SessionInfo, now: Timestamp) -> String {
    match &session.ended_at {
        Some(ended) => format!("ended {}", ago(ended, now)),
        None => ahead(&session.expires_at, now),
    }
}

fn ahead(time: &str, now: Timestamp) -> String {
    if time.starts_with(NEVER) {
        return "never".to_owned();
    }
    match time.parse::<Timestamp>() {
        Ok(time) if time <= now => "now".to_owned(),
        Ok(time) => format!("in {}", roughly(now, time)),
        Err(_) => time.to_owned(),
    }
}

/// The largest whole unit between two moments.
fn roughly(from: Timestamp, to: Timestamp) -> String {
    let Ok(span) = to.since((Unit::Second, from)) else { return "?".to_owned() };
    let seconds = span.get_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_tell_times_and_cannot_steer_the_terminal() {
        let session = SessionInfo {
            id: "0123abcd-ef0".to_owned(),
            image: "host".to_owned(),
            status: "running".to_owned(),
            cwd: "/\u{1b}[31m".to_owned(),
            created_at: "2024-01-01T00:00:00Z".to_owned(),
            expires_at: "2024-01-01T00:31:00.5Z".to_owned(),
            name: Some("evil\u{1b}[2J\nname".to_owned()),
            ..SessionInfo::default()
        };
        let eternal = SessionInfo {
            created_at: "2023-12-01T00:00:00Z".to_owned(),
            expires_at: "9999-12-31T23:59:59Z".to_owned(),
            ..session.clone()
        };
        let ended = SessionInfo { ended_at: Some("2024-01-01T00:00:57Z".to_owned()), ..session.clone() };
        let odd =
            SessionInfo { created_at: "\u{7}".to_owned(), expires_at: String::new(), ..session.clone() };
        let now: Timestamp = "2024-01-01T00:01:00Z".parse().unwrap();
        let all = [session.clone(), eternal.clone()];
        insta::assert_snapshot!(table_of_sandkasten(&all, &now.to_zoned(jiff::tz::TimeZone::UTC)), @r"
        SESSION ID                           IMAGE        STATUS     CREATED      CWD
        ------------------------------------ ------------ ---------- ------------ ---
        0123abcd-ef0                         host         running    00:00:00     /\u{1b}[31m
        0123abcd-ef0                         host         running    2023-12-01   /\u{1b}[31m
        ");
        insta::assert_snapshot!(table(&[session, eternal, ended, odd], now), @r"
        ID            NAME                 IMAGE  STATUS   CREATED  EXPIRES       CWD
        0123abcd-ef0  evil\u{1b}[2J\nname  host   running  1m ago   in 30m        /\u{1b}[31m
        0123abcd-ef0  evil\u{1b}[2J\nname  host   running  31d ago  never         /\u{1b}[31m
        0123abcd-ef0  evil\u{1b}[2J\nname  host   running  1m ago   ended 3s ago  /\u{1b}[31m
        0123abcd-ef0  evil\u{1b}[2J\nname  host   running  \u{7}    -             /\u{1b}[31m
        ");
    }
}
