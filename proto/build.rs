//! Compiles the protos in Rust alone: no protoc is needed.

use std::{env, error::Error, path::PathBuf};

const PROTOS: [&str; 4] = ["scheduler.proto", "manager.proto", "peer.proto", "snapshots.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo:rerun-if-changed={}", dir.display());
    let mut compiler = protox::Compiler::new([&dir])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(PROTOS.map(|name| dir.join(name)))?;
    tonic_prost_build::configure()
        .bytes(".darter")
        .include_file("mod.rs")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
