//! Descriptors and sockets as files.
