//! TAP devices: where frames meet a real kernel.
//!
//! The own opener asks for `IFF_VNET_HDR` (a virtio-net header before each frame:
//! checksums left open, TCP segments whole) and several queues; in plain mode the
//! `tun-tap` crate opens, frames are bare, and the caller completes checksums and
//! segments. A device in another network namespace is opened by a thread that
//! enters it; the descriptor stays with the namespace.
//!
//! One of the three places where `unsafe` is allowed: ioctls, and vectored reads
//! and writes on shared memory, to which no reference may be made.
#![expect(unsafe_code, reason = "TUNSETIFF and its like have no safe wrapper")]

use crate::config::TapConfig;
use ringlab_ring::memory::Slice;
use ringlab_ring::vnet::{VNET_HDR_LEN, VnetHdr};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::{c_int, c_ulong, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// What a TAP refuses to be opened for.
#[derive(Debug, thiserror::Error)]
#[error("tap {name}: {step}: {source}")]
pub struct TapError {
    name: String,
    step: &'static str,
    source: io::Error,
}

impl TapError {
    /// True if a privilege or `/dev/net/tun` is missing.
    pub fn is_machine_fault(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound)
            || matches!(self.source.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
    }
}

/// How the interface is set up when opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapSetup {
    /// Its address; `None`: the kernel's choice.
    pub mac: Option<[u8; 6]>,
    /// Octets of layer-3 payload.
    pub mtu: u16,
}

/// An open TAP device. It goes away when dropped.
#[derive(Debug)]
pub struct Tap {
    queues: Vec<OwnedFd>,
    vnet: bool,
}

/// Most pieces of a frame that is read or written.
pub const MAX_PIECES: usize = 65;

impl Tap {
    /// Makes the device, sets it up and brings it up.
    ///
    /// # Errors
    /// The step that failed and why.
    pub fn open(config: &TapConfig, setup: TapSetup) -> Result<Self, TapError> {
        let Some(path) = &config.netns else { return Self::open_here(config, setup) };
        let fail = |step, source| TapError { name: config.name.clone(), step, source };
        let netns = std::fs::File::open(path).map_err(|e| fail("open network namespace", e))?;
        // Namespaces belong to threads: a thread of its own leaves ours where it is.
        let enter = || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|e| fail("enter network namespace", e.into()))?;
            Self::open_here(config, setup)
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, enter);
            let thread = thread.map_err(|e| fail("start a thread", e))?;
            thread.join().unwrap_or_else(|_| Err(fail("enter network namespace", io::ErrorKind::Other.into())))
        })
    }

    fn open_here(config: &TapConfig, setup: TapSetup) -> Result<Self, TapError> {
        let fail = |step| move |source| TapError { name: config.name.clone(), step, source };
        let queues = if config.plain {
            vec![open_plain(&config.name).map_err(fail("open (plain)"))?]
        } else {
            (0..config.queues).map(|_| open_queue(&config.name)).collect::<io::Result<Vec<_>>>().map_err(fail("open /dev/net/tun"))?
        };
        for queue in &queues {
            rustix::io::ioctl_fionbio(queue, true).map_err(|e| fail("set non-blocking")(e.into()))?;
        }
        set_up(&config.name, setup).map_err(fail("set up"))?;
        Ok(Self { queues, vnet: !config.plain })
    }

    /// Queues.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// True if frames carry a virtio-net header; else checksums and segmentation are the caller's.
    pub fn is_vnet(&self) -> bool {
        self.vnet
    }

    /// The descriptor of a queue, for epoll.
    pub fn fd(&self, queue: usize) -> BorrowedFd<'_> {
        self.queues[queue].as_fd()
    }

    /// Shows or takes away the carrier of the interface.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_carrier(&self, up: bool) -> io::Result<()> {
        let value = c_int::from(up);
        // SAFETY: TUNSETCARRIER reads one int, which outlives the call.
        unsafe { ioctl(self.queues[0].as_raw_fd(), TUNSETCARRIER, (&raw const value).cast_mut().cast()) }
    }

    /// Reads a frame into `pieces`; `None` if none waits. Returns its header and
    /// length; a frame longer than the pieces is cut short by the kernel.
    ///
    /// # Errors
    /// What `readv` answers, `WouldBlock` excepted.
    pub fn read(&self, queue: usize, pieces: &[Slice<'_>]) -> io::Result<Option<(VnetHdr, usize)>> {
        let mut header = [0u8; VNET_HDR_LEN];
        let skip = usize::from(!self.vnet);
        let mut iov = [EMPTY; MAX_PIECES + 1];
        iov[0] = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() };
        let n = fill(&mut iov[1..], pieces) + 1;
        // SAFETY: each entry names private memory that outlives the call (the header)
        // or lies in a live shared mapping (`Slice`), of which no reference exists.
        let got = unsafe { libc::readv(self.queues[queue].as_raw_fd(), iov[skip..].as_ptr(), (n - skip) as c_int) };
        if got < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        }
        let got = got as usize;
        if self.vnet {
            let len = got.checked_sub(VNET_HDR_LEN).ok_or(io::ErrorKind::UnexpectedEof)?;
            return Ok(Some((VnetHdr::parse(&header), len)));
        }
        Ok(Some((VnetHdr { num_buffers: 1, ..VnetHdr::default() }, got)))
    }

    /// Writes a frame that lies in `pieces`. In plain mode the header is not
    /// written: the frame must need neither checksum nor segmentation.
    ///
    /// # Errors
    /// What `writev` answers: `InvalidInput` for a header that does not fit the frame.
    pub fn write(&self, queue: usize, header: &VnetHdr, pieces: &[Slice<'_>]) -> io::Result<()> {
        let mut header = header.emit();
        let skip = usize::from(!self.vnet);
        let mut iov = [EMPTY; MAX_PIECES + 1];
        iov[0] = libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() };
        let n = fill(&mut iov[1..], pieces) + 1;
        // SAFETY: as for `read`; `writev` only reads.
        let put = unsafe { libc::writev(self.queues[queue].as_raw_fd(), iov[skip..].as_ptr(), (n - skip) as c_int) };
        if put < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn fill(iov: &mut [libc::iovec], pieces: &[Slice<'_>]) -> usize {
    assert!(pieces.len() <= iov.len(), "frames have at most MAX_PIECES pieces");
    for (entry, piece) in iov.iter_mut().zip(pieces) {
        let (base, len) = piece.as_raw();
        *entry = libc::iovec { iov_base: base.cast(), iov_len: len };
    }
    pieces.len()
}

// linux/if_tun.h, linux/sockios.h.
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
const TUNSETVNETLE: c_ulong = 0x4004_54dc;
const TUNSETCARRIER: c_ulong = 0x4004_54e2;
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUN_F_CSUM: c_ulong = 0x01;
const TUN_F_TSO4: c_ulong = 0x02;

fn ifreq(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The name's length was checked with the configuration; the last octet stays zero.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// # Safety
/// `argument` is what `request` expects.
unsafe fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let answer = unsafe { libc::ioctl(fd, request as _, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open_queue(name: &str) -> io::Result<OwnedFd> {
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    let fd = file.as_raw_fd();
    let mut request = ifreq(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as i16;
    let header = VNET_HDR_LEN as c_int;
    let little_endian: c_int = 1;
    // SAFETY: TUNSETIFF takes an ifreq, TUNSETVNETHDRSZ and TUNSETVNETLE an int by
    // address, TUNSETOFFLOAD a mask by value; all outlive the calls.
    unsafe {
        ioctl(fd, TUNSETIFF, (&raw mut request).cast())?;
        ioctl(fd, TUNSETVNETHDRSZ, (&raw const header).cast_mut().cast())?;
        ioctl(fd, TUNSETVNETLE, (&raw const little_endian).cast_mut().cast())?;
        ioctl(fd, TUNSETOFFLOAD, (TUN_F_CSUM | TUN_F_TSO4) as *mut c_void)?;
    }
    Ok(file.into())
}

fn open_plain(name: &str) -> io::Result<OwnedFd> {
    let iface = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap)?;
    // SAFETY: `into_raw_fd` hands over the descriptor, which nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(iface.into_raw_fd()) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    // Without IFF_VNET_HDR any other mask is accepted and corrupts traffic.
    // SAFETY: TUNSETOFFLOAD takes its mask by value.
    unsafe { ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, std::ptr::null_mut())? };
    Ok(fd)
}

/// Address, MTU, up: by ioctl on a socket of the namespace that the thread is in.
fn set_up(name: &str, setup: TapSetup) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let fd = socket.as_raw_fd();
    if let Some(mac) = setup.mac {
        let mut request = ifreq(name);
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_hwaddr = address;
        // SAFETY: SIOCSIFHWADDR takes an ifreq.
        unsafe { ioctl(fd, libc::SIOCSIFHWADDR as c_ulong, (&raw mut request).cast())? };
    }
    let mut request = ifreq(name);
    request.ifr_ifru.ifru_mtu = c_int::from(setup.mtu);
    // SAFETY: SIOCSIFMTU takes an ifreq.
    unsafe { ioctl(fd, libc::SIOCSIFMTU as c_ulong, (&raw mut request).cast())? };
    let mut request = ifreq(name);
    // SAFETY: SIOCGIFFLAGS fills an ifreq, SIOCSIFFLAGS takes it; the kernel wrote `ifru_flags`.
    unsafe {
        ioctl(fd, libc::SIOCGIFFLAGS as c_ulong, (&raw mut request).cast())?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16;
        ioctl(fd, libc::SIOCSIFFLAGS as c_ulong, (&raw mut request).cast())
    }
}
