//! `sandhaus pool`: the sandboxes that a server keeps ready.

use std::process::ExitCode;

use anyhow::Result;
use sandhaus_client::wire::PoolInfo;

use crate::{
    cli::{Output, PoolArguments, PoolCommand},
    config::Config,
    output::{Table, print, print_json},
    server::{Server, explain},
};

/// Does what was asked for, and prints the pool as it then is.
pub(crate) async fn pool(arguments: &PoolArguments, config: &Config) -> Result<ExitCode> {
    let server = Server::find(&arguments.server, config)?;
    let client = server.client();
    let pool = match arguments.command {
        PoolCommand::List => client.pool().await,
        PoolCommand::Fill => client.fill_pool().await,
        PoolCommand::Drain => client.drain_pool().await,
    };
    let pool = pool.map_err(explain)?;
    match arguments.output {
        Output::Json => print_json(&pool)?,
        Output::Table => print(&table(&pool))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(pool: &PoolInfo) -> String {
    match pool.state.as_str() {
        "off" => {
            return "no pool is kept; set pool.enabled and pool.images in the configuration\n".to_owned();
        }
        "drained" if pool.images.is_empty() => return "the pool is drained\n".to_owned(),
        _ => {}
    }
    let mut table = Table::new(["IMAGE", "DIGEST", "WANTED", "IDLE", "WARMING", "HITS", "MISSES", "PROBLEM"]);
    for image in &pool.images {
        let drained = (pool.state == "drained").then_some("drained: fill it again with: sandhaus pool fill");
        table.row([
            &image.image,
            &short(&image.digest),
            &image.wanted.to_string(),
            &image.idle.to_string(),
            &image.warming.to_string(),
            &image.hits.to_string(),
            &image.misses.to_string(),
            drained.or(image.problem.as_deref()).unwrap_or_default(),
        ]);
    }
    table.render()
}

/// Enough of a digest to tell two apart.
fn short(digest: &str) -> String {
    const SHOWN: usize = 12;
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use sandhaus_client::wire::PoolImageInfo;

    use super::*;

    #[test]
    fn the_pool_is_a_table() {
        let full = PoolImageInfo {
            image: "python".to_owned(),
            digest: "sha256:0123456789abcdef".to_owned(),
            wanted: 3,
            idle: 2,
            warming: 1,
            hits: 10,
            misses: 4,
            problem: None,
        };
        let missing = PoolImageInfo {
            image: "missing".to_owned(),
            wanted: 1,
            problem: Some("there is no image missing".to_owned()),
            ..PoolImageInfo::default()
        };
        let mut pool = PoolInfo { state: "filled".to_owned(), images: vec![full, missing] };
        insta::assert_snapshot!(table(&pool), @r"
        IMAGE    DIGEST        WANTED  IDLE  WARMING  HITS  MISSES  PROBLEM
        python   0123456789ab  3       2     1        10    4       -
        missing  -             1       0     0        0     0       there is no image missing
        ");
        pool.state = "drained".to_owned();
        assert!(table(&pool).contains("sandhaus pool fill"));
        let off = PoolInfo { state: "off".to_owned(), images: Vec::new() };
        assert!(table(&off).contains("pool.enabled"));
    }
}
