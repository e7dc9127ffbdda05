//! Builds the object that the dynamic loader puts into programs (`src/guest/preload/`), as `preload.so` in `OUT_DIR`.
//!
//! Not as a dependency: a shared object that links nothing needs options of its own.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/guest/preload");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("preload.so");
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets it"));
    rustc.args(["--crate-name", "preload", "--crate-type", "cdylib", "--edition", "2024", "--cfg", "ringlab_preload"]);
    rustc.arg("--target").arg(env::var_os("TARGET").expect("cargo sets it"));
    // One unit: symbols that may be missing are weak in all of it or in none. Unwind tables: threads are cancelled through it.
    for option in ["panic=abort", "opt-level=3", "codegen-units=1", "debuginfo=0", "strip=symbols", "force-unwind-tables=yes"] {
        rustc.args(["-C", option]);
    }
    for argument in ["-nostdlib", "-nostartfiles", "-Wl,-soname,linux-ringlab-preload.so"] {
        rustc.arg("-C").arg(format!("link-arg={argument}"));
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("linker=");
        option.push(linker);
        rustc.arg("-C").arg(option);
    }
    let status = rustc.arg("src/guest/preload/lib.rs").arg("-o").arg(&out).status().expect("rustc runs");
    assert!(status.success(), "the object for programs was not built: {status}");
}
