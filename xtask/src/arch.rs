//! Who may depend on whom. A new edge is a decision record in `docs/decisions/`, then a line here.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

use crate::{root, source, weaknesses};

/// For each package of the workspace, the packages of the workspace it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sandhaus-protocol", &[]),
    ("sandhaus-ssh", &[]),
    ("sandhaus-agent", &["sandhaus-protocol", "sandhaus-ssh"]),
    ("sandhaus-images", &["sandhaus-protocol"]),
    ("sandhaus-snapstore", &[]),
    ("sandhaus-sandbox", &["sandhaus-protocol", "sandhaus-images", "sandhaus-snapstore"]),
    ("sandhaus-engines", &["sandhaus-sandbox", "sandhaus-protocol"]),
    ("sandhaus-client", &["sandhaus-protocol"]),
    ("sandhaus-gateway", &["sandhaus-sandbox", "sandhaus-protocol", "sandhaus-client"]),
    (
        "sandhaus",
        &[
            "sandhaus-client",
            "sandhaus-engines",
            "sandhaus-gateway",
            "sandhaus-images",
            "sandhaus-protocol",
            "sandhaus-sandbox",
            "sandhaus-snapstore",
        ],
    ),
    ("sandhaus-wsl", &[]),
    ("sandhaus-tests", &["sandhaus-client", "sandhaus-protocol"]),
    ("sandhaus-bench", &["sandhaus-client", "sandhaus-tests"]),
    ("xtask", &["sandhaus-protocol"]),
];

/// The same for what only tests may use besides: what a user of the package would hand to it.
const ALLOWED_IN_TESTS: &[(&str, &[&str])] = &[("sandhaus-engines", &["sandhaus-images"])];

/// Packages from outside that may not be reached from a package of ours, by any path of normal dependencies.
const UNREACHABLE: &[(&str, &[&str])] = &[
    ("sandhaus-protocol", &["tokio", "hyper", "axum", "rustix", "libc"]),
    ("sandhaus-ssh", &["hyper", "axum", "rustix"]),
    ("sandhaus-sandbox", &["axum", "virt", "virt-sys"]),
    ("sandhaus-images", &["axum", "openssl-sys", "aws-lc-sys"]),
    ("sandhaus-snapstore", &["axum", "openssl-sys", "aws-lc-sys"]),
    ("sandhaus-client", &["axum"]),
    ("sandhaus-agent", &["rusqlite"]),
    ("sandhaus-engines", &["axum"]),
];

/// Features that a package of ours may not ask of a package from outside.
const FORBIDDEN_FEATURES: &[(&str, &str, &[&str])] = &[
    ("sandhaus-images", "hyper", &["server", "full"]),
    ("sandhaus-sandbox", "hyper", &["server", "full"]),
    ("sandhaus-sandbox", "hyper-util", &["server", "server-auto", "server-graceful", "full"]),
    ("sandhaus-client", "hyper", &["server", "full"]),
];

/// Checks the whole checkout.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut found = graph()?.violations();
    let sources = source::read_all(&root())?;
    found.extend(sources.iter().flat_map(source::violations));
    let python = source::read_folder(&root(), "tests/python", "py")?;
    let browser = source::read_folder(&root(), "tests/page", "mjs")?;
    found.extend(weaknesses::violations(&sources, &python, &browser));
    for violation in &found {
        eprintln!("arch: {violation}");
    }
    if !found.is_empty() {
        bail!("{} violations of the architecture's rules", found.len());
    }
    println!("arch: {} packages and {} source files keep the rules", ALLOWED.len(), sources.len());
    Ok(())
}

/// The workspace's packages, what they ask for, and what that brings along.
#[derive(Debug, Default, Clone)]
struct Graph {
    packages: BTreeMap<String, Package>,
    /// Normal dependencies after resolution, by name, of every package in the lock file.
    resolved: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Debug, Default, Clone)]
struct Package {
    /// Declared dependencies, normal and of build scripts, with the features asked for.
    declared: BTreeMap<String, BTreeSet<String>>,
    /// Those of tests and benchmarks.
    tested_with: BTreeSet<String>,
}

fn graph() -> anyhow::Result<Graph> {
    let metadata = MetadataCommand::new()
        .current_dir(root())
        .other_options(["--locked".to_owned()])
        .exec()
        .context("read cargo metadata")?;
    let mut graph = Graph::default();
    for package in metadata.workspace_packages() {
        let mut noted = Package::default();
        for dependency in &package.dependencies {
            if dependency.kind == DependencyKind::Development {
                noted.tested_with.insert(dependency.name.clone());
            } else {
                let features = noted.declared.entry(dependency.name.clone()).or_default();
                features.extend(dependency.features.iter().cloned());
            }
        }
        graph.packages.insert(package.name.to_string(), noted);
    }
    let names: BTreeMap<_, _> =
        metadata.packages.iter().map(|package| (&package.id, package.name.to_string())).collect();
    for node in metadata.resolve.context("cargo metadata has no resolution")?.nodes {
        let uses = node
            .deps
            .iter()
            .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal))
            .map(|dep| names[&dep.pkg].clone());
        // Two versions of one package count as one: a rule about either is a rule about both.
        graph.resolved.entry(names[&node.id].clone()).or_default().extend(uses);
    }
    Ok(graph)
}

impl Graph {
    fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, package) in &self.packages {
            let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| known == name) else {
                found.push(format!("{name} is not in the rules"));
                continue;
            };
            let in_tests =
                ALLOWED_IN_TESTS.iter().find(|(known, _)| known == name).map_or(&[][..], |(_, used)| *used);
            for used in package.declared.keys().filter(|used| self.packages.contains_key(*used)) {
                if !allowed.contains(&used.as_str()) {
                    found.push(format!("{name} may not depend on {used}"));
                }
            }
            for used in package.tested_with.iter().filter(|used| self.packages.contains_key(*used)) {
                // A package's tests may turn on its own features.
                if used != name && !allowed.contains(&used.as_str()) && !in_tests.contains(&used.as_str()) {
                    found.push(format!("{name} may not depend on {used} in its tests"));
                }
            }
        }
        for (name, banned) in UNREACHABLE {
            for target in *banned {
                if let Some(path) = self.path(name, target) {
                    found.push(format!("{name} may not reach {target}: {}", path.join(" -> ")));
                }
            }
        }
        for (name, used, banned) in FORBIDDEN_FEATURES {
            let asked = self.packages.get(*name).and_then(|package| package.declared.get(*used));
            for feature in
                banned.iter().filter(|feature| asked.is_some_and(|asked| asked.contains(**feature)))
            {
                found.push(format!("{name} may not ask {used} for its feature {feature}"));
            }
        }
        found
    }

    /// The shortest way from one package to another, if there is one.
    fn path(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut ways = vec![vec![from.to_owned()]];
        let mut seen = BTreeSet::from([from.to_owned()]);
        let mut at = 0;
        while at < ways.len() {
            let way = ways[at].clone();
            at += 1;
            let last = way.last().expect("a way has a start");
            if last == to {
                return Some(way);
            }
            for next in self.resolved.get(last).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    ways.push(way.iter().cloned().chain([next.clone()]).collect());
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A workspace that keeps the rules, with one outside package between.
    fn sound() -> Graph {
        let mut graph = Graph::default();
        for (name, allowed) in ALLOWED {
            let declared = allowed.iter().map(|used| ((*used).to_owned(), BTreeSet::new())).collect();
            graph.packages.insert((*name).to_owned(), Package { declared, tested_with: BTreeSet::new() });
            graph
                .resolved
                .insert((*name).to_owned(), allowed.iter().map(|used| (*used).to_owned()).collect());
        }
        graph
    }

    fn declare(graph: &mut Graph, from: &str, to: &str, features: &[&str]) {
        let package = graph.packages.get_mut(from).expect("a package of the workspace");
        package
            .declared
            .insert(to.to_owned(), features.iter().map(|feature| (*feature).to_owned()).collect());
    }

    fn resolve(graph: &mut Graph, from: &str, to: &str) {
        graph.resolved.entry(from.to_owned()).or_default().insert(to.to_owned());
    }

    #[test]
    fn a_sound_workspace_has_no_violations() {
        assert_eq!(sound().violations(), Vec::<String>::new());
    }

    #[test]
    fn forbidden_edges_are_found() {
        for (from, to) in [
            ("sandhaus-engines", "sandhaus-gateway"),
            ("sandhaus-gateway", "sandhaus-engines"),
            ("sandhaus-gateway", "sandhaus-images"),
            ("sandhaus-sandbox", "sandhaus-client"),
            ("sandhaus-agent", "sandhaus-sandbox"),
            ("sandhaus-protocol", "sandhaus-client"),
            ("sandhaus-tests", "sandhaus-engines"),
        ] {
            let mut graph = sound();
            declare(&mut graph, from, to, &[]);
            assert_eq!(graph.violations(), [format!("{from} may not depend on {to}")]);
        }
    }

    #[test]
    fn a_package_without_rules_is_found() {
        let mut graph = sound();
        graph.packages.insert("sandhaus-helpers".to_owned(), Package::default());
        assert_eq!(graph.violations(), ["sandhaus-helpers is not in the rules"]);
    }

    #[test]
    fn what_a_dependency_brings_along_is_found() {
        let mut graph = sound();
        resolve(&mut graph, "sandhaus-protocol", "bytes-and-more");
        resolve(&mut graph, "bytes-and-more", "tokio");
        let found = graph.violations();
        assert!(
            found.contains(
                &"sandhaus-protocol may not reach tokio: sandhaus-protocol -> bytes-and-more -> tokio"
                    .to_owned()
            ),
            "{found:?}"
        );
        let mut graph = sound();
        resolve(&mut graph, "sandhaus-sandbox", "axum");
        assert!(
            graph.violations().iter().any(|found| found.starts_with("sandhaus-sandbox may not reach axum"))
        );
    }

    #[test]
    fn a_server_in_the_domain_is_found() {
        let mut graph = sound();
        declare(&mut graph, "sandhaus-sandbox", "hyper", &["client", "server"]);
        assert_eq!(graph.violations(), ["sandhaus-sandbox may not ask hyper for its feature server"]);
    }

    #[test]
    fn tests_may_use_a_little_more_and_no_more() {
        let mut graph = sound();
        for (name, used) in
            [("sandhaus-sandbox", "sandhaus-sandbox"), ("sandhaus-engines", "sandhaus-images")]
        {
            graph
                .packages
                .get_mut(name)
                .expect("a package of the workspace")
                .tested_with
                .insert(used.to_owned());
        }
        assert_eq!(graph.violations(), Vec::<String>::new());
        let package = graph.packages.get_mut("sandhaus-engines").expect("a package of the workspace");
        package.tested_with.insert("sandhaus-gateway".to_owned());
        assert_eq!(graph.violations(), ["sandhaus-engines may not depend on sandhaus-gateway in its tests"]);
    }
}
