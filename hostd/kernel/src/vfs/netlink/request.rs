//! Requests: the messages of a datagram one by one, acknowledgements, dumps (Linux `netlink_rcv_skb`).

use super::sock::{Opts, nl};
use super::wire::{Attrs, Message, NLMSG_HDRLEN, NlHdr, flag, kind};
use super::{NETLINK_GENERIC, NETLINK_ROUTE};
use crate::Kernel;
use crate::errno::Errno;
use crate::sock::Sock;
use alloc::vec::Vec;

/// `NLMSGERR_ATTR_MSG`.
const ATTR_MSG: u16 = 1;

/// Why a request was refused: the number, and what `NETLINK_EXT_ACK` adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) text: &'static str,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno, text: "" }
    }
}

/// A refusal with words.
pub(super) fn refuse<T>(errno: Errno, text: &'static str) -> Result<T, Refusal> {
    Err(Refusal { errno, text })
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) hdr: NlHdr,
    /// What follows the header.
    pub(super) payload: &'a [u8],
    /// The sender's port id.
    pub(super) portid: u32,
    /// It wants its requests checked strictly.
    pub(super) strict: bool,
}

impl<'a> Request<'a> {
    /// True if it asks for all that there is: either bit says so (snmpd sets `NLM_F_ROOT` alone).
    pub(super) fn is_dump(&self) -> bool {
        self.hdr.flags & flag::DUMP != 0
    }

    /// A message that answers it.
    pub(super) fn reply(&self, kind: u16, flags: u16) -> Message {
        Message::new(kind, flags, self.hdr.seq, self.portid)
    }

    /// The family's header of `len` octets, and the attributes behind it.
    ///
    /// # Errors
    /// `EINVAL` if the header is not all there, or something other than attributes follows and that is to be checked.
    pub(super) fn split(&self, len: usize) -> Result<(&'a [u8], Attrs<'a>), Errno> {
        let head = self.payload.get(..len).ok_or(Errno::EINVAL)?;
        let attrs = Attrs(self.payload.get(len.next_multiple_of(4)..).unwrap_or_default());
        if self.strict {
            attrs.check()?;
        }
        Ok((head, attrs))
    }
}

/// What comes of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// Nothing but an acknowledgement, if one is asked for.
    Done,
    /// A message, and an acknowledgement if one is asked for.
    One(Vec<u8>),
    /// All that there is. `true`: what did not match was left out.
    Dump(Vec<Vec<u8>>),
}

impl Kernel {
    /// Handles what a program sent to the kernel.
    pub(super) fn netlink_rcv(&mut self, sk: &mut Sock, mut data: &[u8]) {
        while let Some(hdr) = NlHdr::parse(data) {
            let (message, rest) = data.split_at(hdr.len as usize);
            data = rest.get(message.len().next_multiple_of(4) - message.len()..).unwrap_or_default();
            let nl = nl!(sk);
            let strict = nl.opts.contains(Opts::STRICT);
            let (portid, protocol) = (nl.portid(), nl.protocol());
            let req = Request { hdr, payload: &message[NLMSG_HDRLEN..], portid, strict };
            let answer = if hdr.flags & flag::REQUEST == 0 || hdr.kind < kind::MIN_TYPE {
                Ok(Answer::Done)
            } else if req.is_dump() && nl.dumping() {
                Err(Errno::EBUSY.into())
            } else {
                match protocol {
                    NETLINK_ROUTE => self.rtnetlink_rcv(&req),
                    NETLINK_GENERIC => self.genl_rcv(&req),
                    _ => self.sock_diag_rcv(&req),
                }
            };
            self.netlink_deliver(Some(sk));
            self.netlink_reply(sk, &req, message, answer);
        }
        self.sk_data_ready(sk);
    }

    fn netlink_reply(&mut self, sk: &mut Sock, req: &Request<'_>, message: &[u8], answer: Result<Answer, Refusal>) {
        let refusal = match answer {
            Ok(Answer::Dump(messages)) => return Self::netlink_dump(sk, req, messages),
            Ok(Answer::One(reply)) => {
                sk.netlink_answer(reply, false);
                None
            }
            Ok(Answer::Done) => None,
            Err(refusal) => Some(refusal),
        };
        if refusal.is_some() || req.hdr.flags & flag::ACK != 0 {
            let ack = Self::netlink_ack(nl!(sk).opts, req, message, refusal);
            sk.netlink_answer(ack, false);
        }
    }

    /// `NLMSG_ERROR`: 0, or a negative number with the request quoted (Linux `netlink_ack`).
    fn netlink_ack(opts: Opts, req: &Request<'_>, message: &[u8], refusal: Option<Refusal>) -> Vec<u8> {
        let whole = refusal.is_some() && !opts.contains(Opts::CAP_ACK);
        let text = refusal.map_or("", |r| r.text);
        let words = opts.contains(Opts::EXT_ACK) && !text.is_empty();
        let flags = if whole { 0 } else { flag::CAPPED } | if words { flag::ACK_TLVS } else { 0 };
        let mut m = req.reply(kind::ERROR, flags);
        m.bytes(&refusal.map_or(0, |r| -r.errno.raw()).to_ne_bytes());
        m.bytes(if whole { message } else { &message[..NLMSG_HDRLEN] });
        if words {
            m.text(ATTR_MSG, text);
        }
        m.finish()
    }

    /// Cuts a dump into datagrams, `NLMSG_DONE` at the end.
    fn netlink_dump(sk: &mut Sock, req: &Request<'_>, messages: Vec<Vec<u8>>) {
        let size = nl!(sk).dump_size();
        let mut done = req.reply(kind::DONE, flag::MULTI);
        done.bytes(&0i32.to_ne_bytes());
        let mut datagram = Vec::new();
        for message in messages.into_iter().chain([done.finish()]) {
            if !datagram.is_empty() && datagram.len() + message.len() > size {
                sk.netlink_answer(core::mem::take(&mut datagram), true);
            }
            datagram.extend(message);
        }
        sk.netlink_answer(datagram, true);
    }
}
