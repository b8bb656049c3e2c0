//! Builds the web page of `dashboard/` with npm and leaves a list of its files where `src/page.rs` embeds them.
//!
//! What was built once is kept beside the outer target folder's profiles under a name made from the content of every
//! source, so npm runs only when something of the page has changed, whatever profile or tool asks.
//!
//! - `SANDHAUS_DASHBOARD_DIST` names a folder with a ready build (what `npm run build` leaves in `dist/`).
//! - `SANDHAUS_DASHBOARD=off` leaves the page out.
//!
//! The same build makes the page of the terminal that agents serve, which goes into the agent: `dist-terminal/`, beside.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use sha2::{Digest, Sha256};

/// Names a ready build.
const DIST: &str = "SANDHAUS_DASHBOARD_DIST";

/// `off` leaves the page out.
const SWITCH: &str = "SANDHAUS_DASHBOARD";

/// The page itself; a build without it is none.
const INDEX: &str = "index.html";

/// Folders that a build leaves: the page, and that of the agents' terminal, which stands beside it under its own ending.
const PAGE_FOLDER: &str = "dist";
const TERMINAL_ENDING: &str = "-terminal";

/// Folders of `dashboard/` that are no source: what developers' own runs leave there.
const NO_SOURCE: &[&str] = &["node_modules", PAGE_FOLDER, "dist-terminal"];

/// Media types by extension. A file of another kind fails the build, rather than be served as something else.
const MEDIA_TYPES: &[(&str, &str)] = &[
    ("html", "text/html; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("svg", "image/svg+xml"),
    ("txt", "text/plain; charset=utf-8"),
];

/// Leaves `assets.rs` in the output folder: a slice of `Asset`. Gives the folder of the terminal's page, if there is one.
pub(crate) fn embed() -> Result<Option<PathBuf>, Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={DIST}");
    println!("cargo::rerun-if-env-changed={SWITCH}");
    let out = PathBuf::from(super::variable("OUT_DIR")?);
    let off = env::var_os(SWITCH).is_some_and(|value| value.eq_ignore_ascii_case("off"));
    let dist = match env::var_os(DIST).filter(|path| !path.is_empty()) {
        _ if off => None,
        Some(ready) => {
            println!("cargo::rerun-if-changed={}", Path::new(&ready).display());
            Some(PathBuf::from(ready).canonicalize()?)
        }
        None => Some(build(&out)?),
    };
    let list = match &dist {
        None => "&[]".to_owned(),
        Some(dist) => list(dist)?,
    };
    fs::write(out.join("assets.rs"), list)?;
    Ok(dist.map(|dist| beside(&dist)).filter(|terminal| terminal.is_dir()))
}

/// Where the terminal's page is, which was built with this page.
fn beside(dist: &Path) -> PathBuf {
    let mut path = dist.as_os_str().to_owned();
    path.push(TERMINAL_ENDING);
    PathBuf::from(path)
}

/// The files beneath `dist` as an expression.
fn list(dist: &Path) -> Result<String, Box<dyn Error>> {
    let mut list = String::from("&[\n");
    let paths = files(dist, &[])?;
    if !paths.iter().any(|path| path == INDEX) {
        return Err(format!("{} has no {INDEX}", dist.display()).into());
    }
    for path in &paths {
        let file = dist.join(path);
        let extension = path.rsplit('.').next().unwrap_or_default();
        if matches!(extension, "gz" | "br") {
            continue;
        }
        let media_type = MEDIA_TYPES.iter().find(|(known, _)| *known == extension).map(|(_, kind)| kind);
        let media_type = media_type.ok_or_else(|| format!("{path} is of an unknown kind"))?;
        let packed = |extension: &str| {
            let name = format!("{path}.{extension}");
            let there = paths.contains(&name).then(|| format!("Some(include_bytes!({:?}))", dist.join(name)));
            there.unwrap_or_else(|| "None".to_owned())
        };
        writeln!(
            list,
            "    Asset {{ path: {path:?}, media_type: {media_type:?}, content: include_bytes!({file:?}), \
             gzip: {}, brotli: {} }},",
            packed("gz"),
            packed("br")
        )?;
    }
    list.push(']');
    Ok(list)
}

/// Builds the page unless these very sources were built before, and answers where it lies.
fn build(out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let source =
        PathBuf::from(super::variable("CARGO_MANIFEST_DIR")?).join("../../dashboard").canonicalize()?;
    // Not the folder itself: a developer's own `node_modules` in it is no reason to build again.
    for entry in fs::read_dir(&source)? {
        let entry = entry?;
        if !NO_SOURCE.iter().any(|name| entry.file_name() == *name) {
            println!("cargo::rerun-if-changed={}", entry.path().display());
        }
    }
    let folder = super::outer_folder(out)?.join("dashboard-build");
    fs::create_dir_all(&folder)?;
    // Two profiles may build at the same time.
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    let sources = files(&source, NO_SOURCE)?;
    let done = folder.join(digest(&source, &sources)?);
    if done.join(INDEX).exists() {
        return Ok(done);
    }
    let work = folder.join("work");
    prepare(&source, &sources, &work)?;
    run(&work, &["run", "--silent", "build"])?;
    let dist = work.join(PAGE_FOLDER);
    let (terminal, terminal_done) = (beside(&dist), beside(&done));
    if !dist.join(INDEX).exists() || !terminal.is_dir() {
        return Err("npm run build left no page".into());
    }
    // Renamed when it is whole, so that nothing half built is ever taken; the page last, whose presence says that both are.
    if terminal_done.exists() {
        fs::remove_dir_all(&terminal_done)?;
    }
    fs::rename(&terminal, &terminal_done)?;
    fs::rename(&dist, &done)?;
    Ok(done)
}

/// Copies the sources to `work` and installs what they need there, unless that is there already.
fn prepare(source: &Path, sources: &[String], work: &Path) -> Result<(), Box<dyn Error>> {
    let wanted = digest(source, &["package-lock.json".to_owned()])?;
    let mark = work.join("node_modules/.made-of");
    let installed = fs::read_to_string(&mark).is_ok_and(|made_of| made_of == wanted);
    if work.exists() {
        for entry in fs::read_dir(work)? {
            let path = entry?.path();
            if installed && path.ends_with("node_modules") {
                continue;
            }
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
    }
    for path in sources {
        let copy = work.join(path);
        fs::create_dir_all(copy.parent().ok_or("a file in a folder")?)?;
        fs::copy(source.join(path), copy)?;
    }
    if !installed {
        // The lock file names every package with its digest; no package runs a script of its own.
        run(work, &["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"])?;
        fs::write(mark, wanted)?;
    }
    Ok(())
}

fn run(work: &Path, arguments: &[&str]) -> Result<Output, Box<dyn Error>> {
    let output = Command::new("npm").args(arguments).current_dir(work).output();
    let output = output.map_err(|error| format!("start npm: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("npm {} ended with {}\n{}", arguments[0], output.status, String::from_utf8_lossy(&said))
        .into())
}

/// A name made from the content of `paths`.
fn digest(root: &Path, paths: &[String]) -> Result<String, Box<dyn Error>> {
    let mut hasher = Sha256::new();
    for path in paths {
        let content = fs::read(root.join(path)).map_err(|error| format!("read {path}: {error}"))?;
        for part in [path.as_bytes(), &content] {
            hasher.update(part.len().to_be_bytes());
            hasher.update(part);
        }
    }
    Ok(hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Every file beneath `root` but in the folders `left_out` of it, as sorted paths with `/`.
fn files(root: &Path, left_out: &[&str]) -> Result<Vec<String>, Box<dyn Error>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.strip_prefix(root)?.to_str().ok_or("a file name that is not UTF-8")?.to_owned();
            if path.is_dir() {
                if !left_out.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}
