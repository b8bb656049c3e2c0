//! `sandhaus workspace`.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};
use sandhaus_sandbox::WorkspaceId;

use super::{Output, ServerArguments};

#[derive(Debug, Args)]
pub(crate) struct WorkspaceArguments {
    #[command(subcommand)]
    pub(crate) command: WorkspaceCommand,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkspaceCommand {
    /// List workspaces, or what a directory in one holds
    #[command(visible_alias = "ls")]
    List {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
        output: Output,
        /// A directory in a workspace
        #[arg(value_name = "WORKSPACE:[PATH]")]
        directory: Option<WorkspaceFile>,
    },
    /// Remove workspaces with all their files
    Rm {
        /// Also those that sandboxes show
        #[arg(short, long)]
        force: bool,
        /// Names of the workspaces
        #[arg(required = true, value_name = "WORKSPACE")]
        workspaces: Vec<WorkspaceId>,
    },
    /// Copy a file into or out of a workspace
    Cp {
        /// What to copy: a file, or WORKSPACE:PATH
        #[arg(value_name = "SRC")]
        source: Place,
        /// Where to: a path, or WORKSPACE:PATH
        #[arg(value_name = "DST")]
        destination: Place,
    },
    /// Print a file of a workspace
    Cat {
        /// The file
        #[arg(value_name = "WORKSPACE:PATH")]
        file: WorkspaceFile,
    },
}

/// A file in a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkspaceFile {
    pub(crate) workspace: WorkspaceId,
    /// From the workspace's root.
    pub(crate) path: String,
}

impl FromStr for WorkspaceFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (workspace, path) = text.split_once(':').ok_or("it must have the form WORKSPACE:PATH")?;
        let workspace = WorkspaceId::parse(workspace).map_err(|error| error.message().to_owned())?;
        Ok(Self { workspace, path: path.to_owned() })
    }
}

/// A file, here or there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// On this host.
    Host(PathBuf),
    /// In a workspace.
    Workspace(WorkspaceFile),
}

impl FromStr for Place {
    type Err = String;

    /// What stands before the first colon is a workspace if it can be one's name; `./` keeps such a file name.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(text.parse().map_or_else(|_| Self::Host(PathBuf::from(text)), Self::Workspace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let inside = |workspace: &str, path: &str| {
            let workspace = WorkspaceId::parse(workspace).expect("a name");
            Place::Workspace(WorkspaceFile { workspace, path: path.to_owned() })
        };
        for (text, place) in [
            ("ab:c/d", inside("ab", "c/d")),
            ("sandkasten-ws-ab:", inside("ab", "")),
            ("./ab:c", Place::Host("./ab:c".into())),
            ("file", Place::Host("file".into())),
            ("A:b", Place::Host("A:b".into())),
        ] {
            assert_eq!(text.parse::<Place>(), Ok(place), "{text}");
        }
    }
}
