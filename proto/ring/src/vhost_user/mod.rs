//! vhost-user: how driver and device agree on features, memory and rings.
//!
//! One unix socket a device. The front end (hostd; or QEMU, DPDK's virtio-user) has
//! the memory and asks; the back end (nicd) answers. Message layouts and codes are
//! those of the `vhost` crate; its blocking client is [`FrontEnd`]'s engine. The
//! back end reads the socket itself (`wire`), because it serves several ports and
//! peers with one thread and may not wait for the rest of a message.
//!
//! Life of a connection, back end's view: features, memory table, for each ring its
//! size, base, addresses, call and kick descriptors. A ring *runs* once all of them,
//! kick last or not, have come ([`BackEvent::VringReady`]); it may carry frames while
//! it is *enabled* (`SET_VRING_ENABLE`; from the start if protocol features were not
//! negotiated); `GET_VRING_BASE` stops it and tells where. A new memory table, address
//! or kick stops and restarts running rings where they stood.
//!
//! The configuration is read by `GET_CONFIG`. When the link goes up or down the back end
//! says so over the back-end channel, if the front end has made one (`channel`). What virtio keeps on the control virtqueue
//! and vhost-user has no message for, interrupt moderation, is read and written as part of it (`moderation`).
//!
//! Untrusted front end: every size, index, address and descriptor is checked; the
//! first that fails closes the connection with a [`BackError`] that names it, after
//! an answer if one was asked for. A file may shrink under its mapping unless sealed:
//! then the port's own process takes the `SIGBUS`, and no other node's (cables map
//! sealed files only).

mod back;
mod channel;
mod front;
mod moderation;
mod state;
mod wire;

pub use back::{BackDevice, BackEnd, BackEvent, Connection, Handled, Listener, Vring};
pub use front::{DeviceConfig, FrontEnd, FrontError, LIMIT, PATIENCE, VringBells};
pub use moderation::Moderation;
pub use state::NetConfig;
pub use wire::BackError;
