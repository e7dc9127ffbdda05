//! Waiting: wait queues, `select`/`poll`, `epoll`.
pub mod queue;

use crate::Kernel;
use crate::sock::Sock;
use queue::{PollEvents, WaitQueue};

/// All epoll instances.
#[derive(Debug, Default)]
pub struct Epolls {}

impl Kernel {
    /// Wakes waiters (Linux `__wake_up_common`): every non-exclusive one, and the first exclusive one that wakes.
    pub(crate) fn wake_up(&mut self, _wq: &mut WaitQueue, _events: PollEvents) {}
    /// `sock_def_readable`.
    pub(crate) fn sk_data_ready(&mut self, _sk: &mut Sock) {}
    /// `sk_stream_write_space` / `sock_def_write_space`.
    pub(crate) fn sk_write_space(&mut self, _sk: &mut Sock) {}
    /// `sock_def_error_report`.
    pub(crate) fn sk_error_report(&mut self, _sk: &mut Sock) {}
    /// `sock_def_wakeup`: state changes that readers and writers must see.
    pub(crate) fn sk_state_change(&mut self, _sk: &mut Sock, _events: PollEvents) {}
    /// A packet charged to a socket (`skb.owner`) is freed (Linux `sock_wfree`).
    pub(crate) fn sock_wfree(&mut self, _owner: u32, _truesize: u32) {}
}
