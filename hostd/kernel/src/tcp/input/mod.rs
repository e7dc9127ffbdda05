//! Input: segments from IP to the socket (Linux `tcp_input.c`, `tcp_ipv4.c`).
//!
//! Read in this order: `rcv` finds the socket; `established` predicts the header
//! or validates the segment (RFC 9293 §3.10.7.4, first to fourth); `ack` takes the
//! acknowledgement (fifth); `data` the text and FIN (seventh, eighth); `urgent` the
//! sixth; `process` the states that are not ESTABLISHED; `synsent` and `listen` the
//! handshakes.

pub mod ack;
pub mod data;
pub mod established;
pub mod listen;
pub mod process;
pub mod rcv;
pub mod rtt;
pub mod synsent;
pub mod timewait;
