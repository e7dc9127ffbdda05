//! Netlink messages and attributes as octets (Linux `struct nlmsghdr`, `struct nlattr`).
//!
//! What comes in is a program's: every length is checked against what is there, an
//! attribute's content against what is read of it. Numbers are in the machine's order;
//! addresses and ports as on the wire.

use crate::errno::Errno;
use crate::syscall::abi::octets;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

/// Octets of a message's header.
pub(crate) const NLMSG_HDRLEN: usize = 16;
/// Octets of an attribute's header.
const NLA_HDRLEN: usize = 4;
/// `NLA_TYPE_MASK`.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// `NLMSG_*` below the first of a family.
pub(crate) mod kind {
    pub(crate) const ERROR: u16 = 2;
    pub(crate) const DONE: u16 = 3;
    pub(crate) const MIN_TYPE: u16 = 16;
}

/// `NLM_F_*`.
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const MULTI: u16 = 2;
    pub(crate) const ACK: u16 = 4;
    pub(crate) const DUMP_FILTERED: u16 = 0x20;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
    /// In an acknowledgement: the request is not quoted in full.
    pub(crate) const CAPPED: u16 = 0x100;
    /// In an acknowledgement: attributes follow.
    pub(crate) const ACK_TLVS: u16 = 0x200;
}

/// `struct nlmsghdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NlHdr {
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) pid: u32,
}

impl NlHdr {
    /// The header at the start; `None` if it is not all there, or its length is less than its own or more than what is there.
    pub(crate) fn parse(b: &[u8]) -> Option<Self> {
        let half = |at| octets(b, at).map(u16::from_ne_bytes);
        let hdr = Self { len: word(b, 0)?, kind: half(4)?, flags: half(6)?, seq: word(b, 8)?, pid: word(b, 12)? };
        (hdr.len as usize >= NLMSG_HDRLEN && hdr.len as usize <= b.len()).then_some(hdr)
    }
}

/// A number at a place, if it is there.
pub(crate) fn word(b: &[u8], at: usize) -> Option<u32> {
    octets(b, at).map(u32::from_ne_bytes)
}

/// An attribute of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attr<'a> {
    pub(crate) kind: u16,
    pub(crate) data: &'a [u8],
}

impl<'a> Attr<'a> {
    pub(crate) fn u32(&self) -> Result<u32, Errno> {
        word(self.data, 0).ok_or(Errno::ERANGE)
    }

    /// An IPv4 address.
    pub(crate) fn addr(&self) -> Result<Ipv4Addr, Errno> {
        octets::<4>(self.data, 0).map(Ipv4Addr::from).ok_or(Errno::ERANGE)
    }

    /// Text up to its end, with or without a zero.
    pub(crate) fn text(&self, max: usize) -> Result<&'a str, Errno> {
        let end = self.data.iter().position(|&b| b == 0).unwrap_or(self.data.len());
        let text = &self.data[..end];
        if text.len() >= max {
            return Err(Errno::ERANGE);
        }
        core::str::from_utf8(text).map_err(|_| Errno::EINVAL)
    }

    /// The attributes inside.
    pub(crate) fn nested(&self) -> Attrs<'a> {
        Attrs(self.data)
    }
}

/// Attributes in a row. What is left and makes no attribute ends them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Attrs<'a> {
    /// The last of a kind, as Linux's table of attributes has it.
    pub(crate) fn get(&self, kind: u16) -> Option<Attr<'a>> {
        self.filter(|a| a.kind == kind).last()
    }

    /// Refuses what is left behind the last attribute (`NL_VALIDATE_TRAILING`, what strict checking asks for).
    ///
    /// # Errors
    /// `EINVAL`.
    pub(crate) fn check(mut self) -> Result<(), Errno> {
        while self.next().is_some() {}
        if self.0.is_empty() { Ok(()) } else { Err(Errno::EINVAL) }
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let len = usize::from(u16::from_ne_bytes(octets(self.0, 0)?));
        let kind = u16::from_ne_bytes(octets(self.0, 2)?) & NLA_TYPE_MASK;
        let data = self.0.get(NLA_HDRLEN..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attr { kind, data })
    }
}

/// A message being written.
#[derive(Debug)]
pub(crate) struct Message {
    buf: Vec<u8>,
}

impl Message {
    /// A header; its length is set by [`Self::finish`].
    pub(crate) fn new(kind: u16, flags: u16, seq: u32, pid: u32) -> Self {
        let mut m = Self { buf: Vec::with_capacity(128) };
        m.bytes(&[0; 4]);
        m.bytes(&kind.to_ne_bytes());
        m.bytes(&flags.to_ne_bytes());
        m.bytes(&seq.to_ne_bytes());
        m.bytes(&pid.to_ne_bytes());
        m
    }

    /// Plain octets: the family's own header.
    pub(crate) fn bytes(&mut self, b: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(b);
        self
    }

    /// An attribute.
    pub(crate) fn attr(&mut self, kind: u16, data: &[u8]) -> &mut Self {
        self.pad();
        let len = (NLA_HDRLEN + data.len()) as u16;
        self.bytes(&len.to_ne_bytes());
        self.bytes(&kind.to_ne_bytes());
        self.bytes(data);
        self.pad();
        self
    }

    pub(crate) fn u8(&mut self, kind: u16, n: u8) -> &mut Self {
        self.attr(kind, &[n])
    }

    pub(crate) fn u16(&mut self, kind: u16, n: u16) -> &mut Self {
        self.attr(kind, &n.to_ne_bytes())
    }

    pub(crate) fn u32(&mut self, kind: u16, n: u32) -> &mut Self {
        self.attr(kind, &n.to_ne_bytes())
    }

    pub(crate) fn u64(&mut self, kind: u16, n: u64) -> &mut Self {
        self.attr(kind, &n.to_ne_bytes())
    }

    pub(crate) fn addr(&mut self, kind: u16, addr: Ipv4Addr) -> &mut Self {
        self.attr(kind, &addr.octets())
    }

    /// Text with its zero.
    pub(crate) fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut b = text.as_bytes().to_vec();
        b.push(0);
        self.attr(kind, &b)
    }

    /// Several numbers.
    pub(crate) fn words(&mut self, kind: u16, words: &[u32]) -> &mut Self {
        let b: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        self.attr(kind, &b)
    }

    /// An attribute of attributes that `inside` writes.
    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) -> &mut Self {
        self.pad();
        let at = self.buf.len();
        self.bytes(&[0; 2]);
        self.bytes(&kind.to_ne_bytes());
        inside(self);
        self.pad();
        let len = (self.buf.len() - at) as u16;
        self.buf[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    /// The whole message.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.pad();
        let len = self.buf.len() as u32;
        self.buf[..4].copy_from_slice(&len.to_ne_bytes());
        self.buf
    }

    fn pad(&mut self) {
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut m = Message::new(16, flag::MULTI, 7, 9);
        m.bytes(&[0; 4]).text(1, "lo").nest(2, |m| {
            m.u32(3, 5).u8(4, 6);
        });
        let b = m.finish();
        let hdr = NlHdr::parse(&b).expect("whole");
        assert_eq!((hdr.len as usize, hdr.kind, hdr.seq, hdr.pid), (b.len(), 16, 7, 9));
        let attrs = Attrs(&b[20..]);
        assert_eq!(attrs.get(1).expect("there").text(16), Ok("lo"));
        let inside = attrs.get(2).expect("there").nested();
        assert_eq!((inside.get(3).expect("there").u32(), inside.get(4).expect("there").data), (Ok(5), &[6][..]));
        assert_eq!((attrs.check(), inside.check()), (Ok(()), Ok(())));
    }

    #[test]
    fn wrong_lengths_end_the_row() {
        let mut b = Message::new(16, 0, 0, 0).finish();
        assert!(NlHdr::parse(&b[..15]).is_none());
        b[0] = 15;
        assert!(NlHdr::parse(&b).is_none());
        b[0] = 17;
        assert!(NlHdr::parse(&b).is_none());
        for bad in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 1, 2, 3, 4], &[0, 0, 1, 0], &[1, 2, 3]] {
            assert_eq!(Attrs(bad).next(), None);
            assert_eq!(Attrs(bad).check(), Err(Errno::EINVAL));
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_walked_to_their_end(b in proptest::collection::vec(any::<u8>(), 0..300)) {
            let read = Attrs(&b).map(|a| 1 + a.nested().count()).fold(0, |n, _| n + 1);
            prop_assert!(read <= b.len() / NLA_HDRLEN);
            let _ = NlHdr::parse(&b);
        }
    }
}
