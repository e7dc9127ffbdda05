//! The figures of `make bench`, each beside its reference in the same run.
fn main() {}
