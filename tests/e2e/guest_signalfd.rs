//! Signalfds beside sockets in an epoll set: a process sees its own signals there.

use crate::guest_signals::same_of;

#[test]
fn epoll_sets_report_signals_and_sockets() {
    same_of("signalfd", &[&[]]);
}
