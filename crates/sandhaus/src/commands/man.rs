//! `sandhaus man`: manual pages, made of the same definitions as `--help`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::{
    cli::{Cli, ManArguments},
    output::{print, visible},
};

/// Prints the page of the whole program, or writes every page into a directory.
pub(crate) fn man(arguments: &ManArguments) -> Result<ExitCode> {
    let command = Cli::command();
    match &arguments.dir {
        Some(dir) => {
            fs_err::create_dir_all(dir)?;
            clap_mangen::generate_to(command, dir)
                .with_context(|| format!("write manual pages into {}", dir.display()))?;
            print(&format!("{}\n", visible(&dir.display().to_string())))?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command.disable_help_subcommand(true)).render(&mut page)?;
            print(&String::from_utf8(page)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
