//! Takes the indentation out of the API's description, which the agent carries; and has the linker leave a note that tells
//! each build of the agent from every other.

use std::{env, error::Error, fs, path::PathBuf};

const SOURCE: &str = "../../docs/openapi-toolbox.json";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=-Wl,--build-id=sha1");
    let text = fs::read_to_string(SOURCE)?;
    // No line of the document but those between values begins with a blank: text in it has its ends of lines escaped.
    let compact: Vec<&str> = text.lines().map(str::trim_start).collect();
    let target = PathBuf::from(env::var("OUT_DIR")?).join("openapi-toolbox.json");
    fs::write(target, compact.concat())?;
    Ok(())
}
