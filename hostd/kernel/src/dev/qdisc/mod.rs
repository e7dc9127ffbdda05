//! Queueing disciplines: what holds packets between the stack and the driver.
pub(crate) mod pfifo_fast;
