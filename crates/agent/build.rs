//! Takes the indentation out of the API's description, which the agent carries; leaves the page of the terminal where it is
//! embedded; and has the linker leave a note that tells each build of the agent from every other.

use std::{env, error::Error, fs, io::Write as _, path::PathBuf};

use flate2::{Compression, write::GzEncoder};

const SOURCE: &str = "../../docs/openapi-toolbox.json";

/// Names the folder with the terminal's page: what `npm run build` of `dashboard/` leaves in `dist-terminal/`.
const PAGE_FOLDER: &str = "SANDHAUS_TERMINAL_PAGE";

/// The page's files, and what there is instead where none is built: the terminal itself is the same with either.
const PAGE_FILES: [(&str, &str); 3] =
    [("terminal.html", include_str!("src/terminal/missing.html")), ("terminal.js", ""), ("terminal.css", "")];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,--build-id=sha1");
    let text = fs::read_to_string(SOURCE)?;
    // No line of the document but those between values begins with a blank: text in it has its ends of lines escaped.
    let compact: Vec<&str> = text.lines().map(str::trim_start).collect();
    let target = PathBuf::from(env::var("OUT_DIR")?).join("openapi-toolbox.json");
    fs::write(target, compact.concat())?;
    pack_page()
}

fn pack_page() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={PAGE_FOLDER}");
    println!("cargo::rerun-if-changed=src/terminal/missing.html");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let folder = env::var_os(PAGE_FOLDER).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    for (name, instead) in PAGE_FILES {
        let content = match &folder {
            Some(folder) => {
                let path = folder.join(name);
                println!("cargo::rerun-if-changed={}", path.display());
                fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?
            }
            None => instead.as_bytes().to_vec(),
        };
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&content)?;
        fs::write(out.join(format!("{name}.gz")), packed.finish()?)?;
    }
    Ok(())
}
