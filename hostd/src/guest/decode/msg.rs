//! `struct msghdr`, `struct iovec`.

use super::{u32_at, u64_at};
use ringlab_kernel::errno::Errno;
use ringlab_kernel::uaccess::{Iov, UserSlice};

/// Octets of `struct msghdr`.
pub const MSGHDR: usize = 56;
/// Octets of `struct mmsghdr`.
pub const MMSGHDR: u64 = 64;
/// Offset of `msg_namelen`.
pub const NAMELEN: u64 = 8;
/// Offset of `msg_controllen`.
pub const CONTROLLEN: u64 = 40;
/// Offset of `msg_flags`.
pub const FLAGS: u64 = 48;
/// Octets of `struct iovec`.
pub const IOVEC: usize = 16;
/// Most messages of a call.
pub const MAX_MESSAGES: u64 = 1024;
/// Most buffers of a call (`UIO_MAXIOV`).
pub const MAX_IOV: usize = 1024;
/// Octets of control messages that a program may send (`net.core.optmem_max`).
pub const MAX_CONTROL: usize = 20480;
/// Most octets that a call transfers (`MAX_RW_COUNT`).
pub const MAX_RW: u64 = 0x7fff_f000;

/// End of a program's addresses (47 bits, less a page).
const USER_END: u64 = (1 << 47) - 4096;

/// `struct msghdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsgHdr {
    /// Address of the peer's address.
    pub name: u64,
    /// Its room.
    pub namelen: i32,
    /// Address of the buffers.
    pub iov: u64,
    /// How many.
    pub iovlen: u64,
    /// Address of control messages.
    pub control: u64,
    /// Their room.
    pub controllen: u64,
}

impl MsgHdr {
    /// Takes it apart.
    pub fn parse(b: &[u8; MSGHDR]) -> Self {
        Self {
            name: u64_at(b, 0),
            namelen: u32_at(b, 8) as i32,
            iov: u64_at(b, 16),
            iovlen: u64_at(b, 24),
            control: u64_at(b, 32),
            controllen: u64_at(b, 40),
        }
    }
}

/// Looks at where a buffer lies, before anything else is done (Linux `access_ok`), even if it has no octets.
///
/// # Errors
/// `EFAULT` if it is not below the end of a program's address space.
pub fn access_ok(addr: u64, len: u64) -> Result<(), Errno> {
    match addr.checked_add(len) {
        Some(end) if end <= USER_END => Ok(()),
        _ => Err(Errno::EFAULT),
    }
}

/// Buffers, each 16 octets of `b`.
///
/// # Errors
/// `EINVAL` if a length is negative, `EFAULT` as [`access_ok`].
pub fn iovecs(b: &[u8]) -> Result<Iov, Errno> {
    let mut left = MAX_RW;
    let mut list = b.chunks_exact(IOVEC).map(|v| {
        let len = u64_at(v, 8);
        if len > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        let len = len.min(left);
        left -= len;
        access_ok(u64_at(v, 0), len)?;
        Ok(UserSlice { addr: u64_at(v, 0), len })
    });
    if b.len() == IOVEC {
        return list.next().unwrap_or(Err(Errno::EINVAL)).map(Iov::One);
    }
    list.collect::<Result<Vec<_>, _>>().map(Iov::Many)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_limited_in_all() {
        let mut b = [0; 32];
        b[8..16].copy_from_slice(&(1u64 << 40).to_ne_bytes());
        b[24..32].copy_from_slice(&5u64.to_ne_bytes());
        assert_eq!(iovecs(&b).map(|v| v.len()), Ok(MAX_RW));
        b[31] = 0x80;
        assert_eq!(iovecs(&b), Err(Errno::EINVAL));
        b[24..].fill(0);
        b[23] = 0x80;
        assert_eq!(iovecs(&b), Err(Errno::EFAULT), "no octets, but in the kernel's half");
    }
}
