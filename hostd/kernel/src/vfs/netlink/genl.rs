//! `NETLINK_GENERIC`: the controller, which knows only itself. A program that looks for a
//! family hears `ENOENT` and takes its other way (ethtool: `ioctl`).

use super::request::{Answer, Refusal, Request};
use super::wire::{Attrs, flag};
use crate::Kernel;
use crate::errno::Errno;
use alloc::vec::Vec;

/// `GENL_ID_CTRL`, also its number of message.
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_NEWFAMILY: u8 = 1;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_VERSION: u16 = 3;
const CTRL_ATTR_HDRSIZE: u16 = 4;
const CTRL_ATTR_MAXATTR: u16 = 5;
/// Octets of `struct genlmsghdr`.
const GENL_HDRLEN: usize = 4;
const NAME: &str = "nlctrl";
const VERSION: u8 = 2;
const MAXATTR: u32 = 10;

impl Kernel {
    /// Linux `genl_rcv_msg`.
    pub(super) fn genl_rcv(&mut self, req: &Request<'_>) -> Result<Answer, Refusal> {
        if req.hdr.kind != GENL_ID_CTRL {
            return Err(Errno::ENOENT.into());
        }
        let (head, attrs) = req.split(GENL_HDRLEN)?;
        if head[0] != CTRL_CMD_GETFAMILY {
            return Err(Errno::EOPNOTSUPP.into());
        }
        // Here, not elsewhere, both bits are wanted.
        if req.hdr.flags & flag::DUMP == flag::DUMP {
            return Ok(Answer::Dump(Vec::from([controller(req, flag::MULTI)])));
        }
        if asks_for_controller(attrs)? { Ok(Answer::One(controller(req, 0))) } else { Err(Errno::ENOENT.into()) }
    }
}

fn asks_for_controller(attrs: Attrs<'_>) -> Result<bool, Errno> {
    if let Some(id) = attrs.get(CTRL_ATTR_FAMILY_ID) {
        return Ok(id.u32().or_else(|_| id.data.try_into().map(u16::from_ne_bytes).map(u32::from).map_err(|_| Errno::ERANGE))?
            == u32::from(GENL_ID_CTRL));
    }
    match attrs.get(CTRL_ATTR_FAMILY_NAME) {
        Some(name) => Ok(name.text(16)? == NAME),
        None => Err(Errno::EINVAL),
    }
}

fn controller(req: &Request<'_>, flags: u16) -> Vec<u8> {
    let mut m = req.reply(GENL_ID_CTRL, flags);
    m.bytes(&[CTRL_CMD_NEWFAMILY, VERSION, 0, 0]);
    m.text(CTRL_ATTR_FAMILY_NAME, NAME).u16(CTRL_ATTR_FAMILY_ID, GENL_ID_CTRL);
    m.u32(CTRL_ATTR_VERSION, VERSION.into()).u32(CTRL_ATTR_HDRSIZE, 0).u32(CTRL_ATTR_MAXATTR, MAXATTR);
    m.finish()
}
