//! The verbs, one file each.

pub mod check;
pub mod completion;
pub mod deploy;
pub mod destroy;
pub mod doctor;
pub mod exec;
pub mod graph;
pub mod inspect;
pub mod link;
pub mod list;
pub mod logs;
pub mod restart;
pub mod schema;
pub mod stat;
pub mod trace;
pub mod validate;
