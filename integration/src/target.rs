//! Cargo's target directory: the binary under test, and the cache for what is slow to make.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

/// The directory of the running executable's profile, such as `target/debug`.
fn profile_dir() -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let dir = executable.parent().context("the executable is in no directory")?;
    // Test executables are one directory further down than binaries.
    let dir = if dir.ends_with("deps") { dir.parent().context("deps is in no directory")? } else { dir };
    Ok(dir.to_owned())
}

/// The `darter` binary of the same build.
pub fn darter() -> Result<PathBuf> {
    let path = profile_dir()?.join("darter");
    anyhow::ensure!(path.exists(), "{} is missing: cargo build --workspace --bins", path.display());
    Ok(path)
}

/// A directory for what is slow to make and never changes. It is removed by `cargo clean`.
pub fn cache(name: &str) -> Result<PathBuf> {
    let profile = profile_dir()?;
    let target = profile.parent().context("the profile's directory is in no directory")?;
    let cache = target.join("integration-cache").join(name);
    std::fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    Ok(cache)
}

/// The file that a benchmark writes its results to.
pub fn bench(name: &str) -> Result<PathBuf> {
    let profile = profile_dir()?;
    let bench = profile.parent().context("the profile's directory is in no directory")?.join("bench");
    std::fs::create_dir_all(&bench).with_context(|| format!("creating {}", bench.display()))?;
    Ok(bench.join(name).with_extension("json"))
}

/// Writes the results of a benchmark, and says where.
pub fn write_results(name: &str, results: &impl Serialize) -> Result<()> {
    let path = bench(name)?;
    let written = std::fs::write(&path, serde_json::to_string_pretty(results)? + "\n");
    written.with_context(|| format!("writing {}", path.display()))?;
    println!("Written to {}.", path.display());
    Ok(())
}
