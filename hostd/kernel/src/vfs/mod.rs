//! Descriptors and sockets as files.

/// Descriptor tables and open files of all tasks.
#[derive(Debug, Default)]
pub struct Vfs {}
