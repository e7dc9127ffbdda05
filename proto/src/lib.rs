//! Everything that Ringlab's processes agree on: the gRPC services and how
//! they are served, how programs' input travels, the topology file, and (re-exported) the counter names.

pub mod account;
pub mod exec;
pub mod server;
pub mod topology;

pub use ringlab_counters as counters;

/// Generated code: its items are documented in the `.proto` files.
#[allow(missing_docs, clippy::all, rustdoc::all, reason = "written by tonic-prost-build; the .proto files are the documentation")]
mod generated {
    pub mod ringlab {
        pub mod agent {
            pub mod v1 {
                tonic::include_proto!("ringlab.agent.v1");
            }
        }
        pub mod host {
            pub mod v1 {
                tonic::include_proto!("ringlab.host.v1");
            }
        }
        pub mod nic {
            pub mod v1 {
                tonic::include_proto!("ringlab.nic.v1");
            }
        }
    }
}

/// `ringlab.agent.v1`: labctl to agent.
pub use generated::ringlab::agent::v1 as agent;
/// `ringlab.host.v1`: agent to hostd.
pub use generated::ringlab::host::v1 as host;
/// `ringlab.nic.v1`: agent to nicd.
pub use generated::ringlab::nic::v1 as nic;

/// The encoded `FileDescriptorSet` of the three services, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ringlab.bin"));
