//! Compiles the service definitions with protox: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["agent.proto", "nic.proto", "host.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let set = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("ringlab.bin");
    std::fs::write(&out, prost::Message::encode_to_vec(&set))?;
    tonic_prost_build::configure().compile_fds(set)?;
    Ok(())
}
