//! `sandhaus cp`: files and directories into and out of a sandbox.
//!
//! The inside is only ever reached through its agent, which resolves paths there. What comes out is not trusted: names
//! are checked, and the host's side is written through directory descriptors (see [`crate::tree`]), so that nothing
//! lands outside of the destination, whatever the sandbox says its files are called or linked to.

use std::{collections::BTreeMap, path::Path, process::ExitCode, rc::Rc};

use anyhow::{Context, Result, bail, ensure};
use http_body_util::BodyExt;
use sandhaus_protocol::files::{LINK_PATH, Link};
use sandhaus_sandbox::{SandboxId, toolbox::Toolbox};
use serde::Deserialize;

use crate::{
    advice::{Advice, print_warning},
    cli::CpArguments,
    commands::run::Quiet,
    config::Config,
    progress::Progress,
    server::{Server, explain},
    toolbox::{Content, get, post, whole},
    tree::{Directory, Entry, Kind},
    values::Location,
};

/// Deepest directory that is copied.
const DEPTH_MAX: usize = 200;

/// Permission bits that are copied; a setuid bit is for the place where it was made.
const MODE_MASK: u32 = 0o777;

/// Copies.
pub(crate) async fn cp(arguments: &CpArguments, config: &Config, quiet: Quiet) -> Result<ExitCode> {
    let _progress = Progress::after_a_second("copying", quiet);
    match (&arguments.source, &arguments.destination) {
        (Location::Host(source), Location::Sandbox { id, path }) => {
            let inside = Inside::reach(arguments, config, id).await?;
            inside
                .upload(source, path)
                .await
                .with_context(|| format!("copy {} into {id}", source.display()))?;
        }
        (Location::Sandbox { id, path }, Location::Host(destination)) => {
            let inside = Inside::reach(arguments, config, id).await?;
            inside.download(path, destination).await.with_context(|| format!("copy {path} out of {id}"))?;
        }
        (Location::Host(_), Location::Host(_)) => {
            let remedy = "write the one inside a sandbox as ID:PATH, with an id as `sandhaus ps` lists them";
            return Err(Advice::new("both paths are on this host", remedy).into());
        }
        (Location::Sandbox { .. }, Location::Sandbox { .. }) => {
            return Err(Advice::new("both paths are in sandboxes", "copy to this host first").into());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One sandbox's files.
struct Inside {
    toolbox: Toolbox,
    /// Where relative paths start.
    workdir: String,
}

/// What the agent tells about a file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    name: String,
    is_dir: bool,
    /// As `ls` prints it; the first letter is the kind.
    mode: String,
    /// In octal.
    permissions: String,
    #[serde(default)]
    link_target: Option<String>,
}

impl Info {
    fn kind(&self) -> Kind {
        // Setuid and its like stand before the permissions, so a file is what is nothing else.
        match (&self.link_target, self.mode.as_bytes().first()) {
            (Some(target), _) => Kind::Link(target.clone()),
            (None, _) if self.is_dir => Kind::Directory,
            (None, Some(b'p' | b'S' | b'D' | b'L')) => Kind::Other,
            (None, _) => Kind::File,
        }
    }

    fn permission_bits(&self) -> Result<u32> {
        let bits = u32::from_str_radix(&self.permissions, 8).context("permissions are not octal")?;
        Ok(bits & MODE_MASK)
    }
}

impl Inside {
    async fn reach(arguments: &CpArguments, config: &Config, id: &SandboxId) -> Result<Self> {
        let server = Server::find(&arguments.server, config)?;
        let session = server.client().get(id.as_str()).await.map_err(explain)?;
        Ok(Self { toolbox: server.toolbox(id.as_str()), workdir: session.cwd })
    }

    /// An absolute path inside.
    fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') { path.to_owned() } else { join(&self.workdir, path) }
    }

    /// What is at `path`, links followed; nothing, if nothing is.
    async fn info(&self, path: &str) -> Result<Option<Info>> {
        let uri = uri("/files/info", &[("path", path)]);
        match get(&self.toolbox, &uri).await {
            Ok(body) => Ok(Some(serde_json::from_slice(&whole(body).await?)?)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn upload(&self, source: &Path, destination: &str) -> Result<()> {
        let destination_is_directory = destination.ends_with('/');
        let destination = self.absolute(destination);
        let (entry, parent) = Entry::named(source)?;
        let existing = self.info(&destination).await?;
        let into = existing.is_some_and(|info| info.is_dir);
        ensure!(into || !destination_is_directory, "there is no directory {destination} in the sandbox");
        let target =
            if into && !copies_content_only(source) { join(&destination, &entry.name) } else { destination };
        self.upload_tree(parent, entry, target).await
    }

    /// Depth first, with the work left in a list: no depth of theirs is a depth of our stack.
    async fn upload_tree(&self, parent: Rc<Directory>, entry: Entry, target: String) -> Result<()> {
        let mut left = vec![(parent, entry, target, 0)];
        while let Some((parent, entry, target, depth)) = left.pop() {
            match &entry.kind {
                Kind::File => self.upload_file(&parent, &entry, &target).await?,
                Kind::Link(text) => self.make_link(&target, text).await?,
                Kind::Other => {
                    print_warning(&format!("{target} is left out: neither file, directory nor link"))
                }
                Kind::Directory => {
                    ensure!(depth < DEPTH_MAX, "{target} lies deeper than {DEPTH_MAX} directories");
                    let mode = format!("{:04o}", entry.mode & MODE_MASK);
                    let uri = uri("/files/folder", &[("path", &target), ("mode", &mode)]);
                    post(&self.toolbox, &uri, Content::Nothing)
                        .await
                        .with_context(|| format!("make directory {target}"))?;
                    let directory = Rc::new(parent.open(&entry.name)?);
                    for child in directory.entries()? {
                        let child_target = join(&target, &child.name);
                        left.push((Rc::clone(&directory), child, child_target, depth + 1));
                    }
                }
            }
        }
        Ok(())
    }

    async fn upload_file(&self, parent: &Directory, entry: &Entry, target: &str) -> Result<()> {
        let file = parent.open_file(&entry.name)?;
        let body = crate::body::stream(file)?;
        let upload = uri("/files/upload-v2", &[("path", target)]);
        post(&self.toolbox, &upload, Content::Bytes(body))
            .await
            .with_context(|| format!("write {target}"))?;
        let mode = format!("{:04o}", entry.mode & MODE_MASK);
        let permissions = uri("/files/permissions", &[("path", target), ("mode", &mode)]);
        post(&self.toolbox, &permissions, Content::Nothing)
            .await
            .with_context(|| format!("set permissions of {target}"))
    }

    async fn make_link(&self, path: &str, target: &str) -> Result<()> {
        let link = Link { root: None, path: path.to_owned(), target: target.to_owned() };
        let content = Content::Json(serde_json::to_vec(&link)?);
        post(&self.toolbox, LINK_PATH, content).await.with_context(|| format!("make link {path}"))
    }

    async fn download(&self, source: &str, destination: &Path) -> Result<()> {
        let content_only = copies_content_only(Path::new(source));
        let source = self.absolute(source);
        let info =
            self.info(&source).await?.with_context(|| format!("there is no {source} in the sandbox"))?;
        let (directory, name) = if destination.is_dir() {
            (Directory::open_named(destination)?, base_name(&source))
        } else {
            ensure!(
                !destination.as_os_str().as_encoded_bytes().ends_with(b"/"),
                "there is no directory {}",
                destination.display()
            );
            let parent = match destination.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            let name =
                destination.file_name().and_then(|name| name.to_str()).context("the name is not UTF-8")?;
            (Directory::open_named(parent)?, Some(name.to_owned()))
        };
        let directory = Rc::new(directory);
        match name {
            Some(name) if !(content_only && destination.is_dir()) => {
                self.download_tree(directory, name, info, source).await
            }
            _ if info.is_dir => self.download_content(directory, source).await,
            _ => bail!("{source} is not a directory"),
        }
    }

    /// What lies in the directory `source`, directly into `directory`.
    async fn download_content(&self, directory: Rc<Directory>, source: String) -> Result<()> {
        for child in self.list(&source).await? {
            let (name, path) = (child.name.clone(), join(&source, &child.name));
            self.download_tree(Rc::clone(&directory), name, child, path).await?;
        }
        Ok(())
    }

    async fn download_tree(
        &self,
        directory: Rc<Directory>,
        name: String,
        info: Info,
        source: String,
    ) -> Result<()> {
        enum Left {
            Copy {
                directory: Rc<Directory>,
                name: String,
                info: Info,
                source: String,
                depth: usize,
            },
            /// A directory may be made read-only only when it is full.
            Seal {
                directory: Rc<Directory>,
                mode: u32,
            },
        }
        let mut left = vec![Left::Copy { directory, name, info, source, depth: 0 }];
        while let Some(next) = left.pop() {
            let (directory, name, info, source, depth) = match next {
                Left::Copy { directory, name, info, source, depth } => (directory, name, info, source, depth),
                Left::Seal { directory, mode } => {
                    directory.set_mode(mode)?;
                    continue;
                }
            };
            match info.kind() {
                Kind::File => self.download_file(&directory, &name, &info, &source).await?,
                Kind::Link(target) => directory.replace_link(&name, &target)?,
                Kind::Other => {
                    print_warning(&format!("{source} is left out: neither file, directory nor link"))
                }
                Kind::Directory => {
                    ensure!(depth < DEPTH_MAX, "{source} lies deeper than {DEPTH_MAX} directories");
                    let made = Rc::new(directory.make(&name)?);
                    left.push(Left::Seal { directory: Rc::clone(&made), mode: info.permission_bits()? });
                    for child in self.list(&source).await? {
                        let (name, source) = (child.name.clone(), join(&source, &child.name));
                        let directory = Rc::clone(&made);
                        left.push(Left::Copy { directory, name, info: child, source, depth: depth + 1 });
                    }
                }
            }
        }
        Ok(())
    }

    async fn list(&self, path: &str) -> Result<Vec<Info>> {
        let body = get(&self.toolbox, &uri("/files", &[("path", path)]))
            .await
            .with_context(|| format!("list {path}"))?;
        serde_json::from_slice(&whole(body).await?).context("the listing is not understood")
    }

    async fn download_file(
        &self,
        directory: &Directory,
        name: &str,
        info: &Info,
        source: &str,
    ) -> Result<()> {
        let mut body = get(&self.toolbox, &uri("/files/download", &[("path", source)]))
            .await
            .with_context(|| format!("read {source}"))?;
        let mut file = directory.replace_file(name, info.permission_bits()?)?;
        while let Some(frame) = body.frame().await {
            let frame = frame.with_context(|| format!("read {source}"))?;
            if let Ok(bytes) = frame.into_data() {
                file.write(&bytes)?;
            }
        }
        file.commit()
    }
}

/// A call of the files API: paths mean what they mean to the workload.
fn uri(path: &str, parameters: &[(&str, &str)]) -> String {
    let parameters: BTreeMap<&str, &str> = parameters.iter().copied().collect();
    format!("{path}?{}", Toolbox::query(&parameters))
}

fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<crate::toolbox::Refused>().is_some_and(|refused| refused.is_not_found())
}

/// `dir/name`, with one slash between.
fn join(directory: &str, name: &str) -> String {
    format!("{}/{name}", directory.trim_end_matches('/'))
}

/// The last component; none of a root.
fn base_name(path: &str) -> Option<String> {
    path.split('/').rfind(|part| !part.is_empty() && *part != ".").map(str::to_owned)
}

/// `dir/.` means what lies in the directory, not the directory.
fn copies_content_only(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/.") || path == Path::new(".")
}
