//! Topology files, read with the user's permissions.

use crate::error::{CliError, CliResult};
use ringlab_proto::topology::{self, MAX_FILE, Topology};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A file that is right.
#[derive(Debug)]
pub struct TopologyFile {
    /// Absolute path.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// What it says.
    pub topology: Topology,
}

impl TopologyFile {
    /// Reads and checks a file, and looks at the paths in it.
    pub fn read(path: &Path) -> CliResult<Self> {
        Self::parsed(path, true)
    }

    /// Reads and checks a file; what it names need not be there.
    pub fn read_text(path: &Path) -> CliResult<Self> {
        Self::parsed(path, false)
    }

    fn parsed(path: &Path, look: bool) -> CliResult<Self> {
        let shown = path.display();
        let failed = |error: std::io::Error| CliError::usage(format!("{shown}: {error}"));
        let file = std::fs::File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(CliError::usage(format!("{shown} is a directory; name a topology file in it")));
        }
        let mut octets = Vec::new();
        // One octet more than allowed: a larger file is refused without being read.
        file.take(MAX_FILE + 1).read_to_end(&mut octets).map_err(failed)?;
        let size = metadata.len().max(octets.len() as u64);
        if size > MAX_FILE {
            return Err(CliError::usage(format!(
                "{shown}: the file has {} MiB; a topology has at most {} MiB",
                size >> 20,
                MAX_FILE >> 20
            )));
        }
        let text = String::from_utf8(octets).map_err(|error| {
            CliError::usage(format!("{shown}: octet {} is not UTF-8; save the file as UTF-8", error.utf8_error().valid_up_to()))
        })?;
        let path = std::fs::canonicalize(path).map_err(failed)?;
        let base = path.parent().unwrap_or(Path::new("/"));
        let name = shown.to_string();
        let topology = if look { topology::parse_in(&name, &text, base) } else { topology::parse(&name, &text) };
        let topology = topology.map_err(Box::new)?;
        Ok(Self { path, text, topology })
    }
}

/// Whether an argument is meant as a file rather than as a lab's name.
pub fn is_file_name(argument: &str) -> bool {
    argument.contains(['/', '.'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn refused(octets: &[u8]) -> String {
        let scratch = Scratch::new("topology");
        let path = scratch.path().join("lab.yaml");
        std::fs::write(&path, octets).unwrap();
        let error = TopologyFile::read(&path).unwrap_err();
        assert_eq!(error.code(), 2);
        error.render()
    }

    #[test]
    fn what_is_no_topology_is_refused_as_usage() {
        assert!(refused(b"name: t\xff\n").contains("octet 7 is not UTF-8"));
        assert!(refused(&vec![b'#'; MAX_FILE as usize + 1]).contains("at most 4 MiB"));
        assert_eq!(TopologyFile::read(Path::new("/")).unwrap_err().code(), 2);
        assert_eq!(TopologyFile::read(Path::new("/no/such/file.yaml")).unwrap_err().code(), 2);
    }
}
