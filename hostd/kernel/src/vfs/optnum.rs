//! Levels and names of options, as Linux numbers them.

/// Levels.
pub(crate) mod level {
    pub(crate) const IP: i32 = 0;
    pub(crate) const SOCKET: i32 = 1;
    pub(crate) const TCP: i32 = 6;
    pub(crate) const UDP: i32 = 17;
    pub(crate) const IPV6: i32 = 41;
    pub(crate) const RAW: i32 = 255;
    pub(crate) const PACKET: i32 = 263;
    pub(crate) const NETLINK: i32 = 270;
}

/// `SO_*`.
pub(crate) mod so {
    pub(crate) const DEBUG: i32 = 1;
    pub(crate) const REUSEADDR: i32 = 2;
    pub(crate) const TYPE: i32 = 3;
    pub(crate) const ERROR: i32 = 4;
    pub(crate) const DONTROUTE: i32 = 5;
    pub(crate) const BROADCAST: i32 = 6;
    pub(crate) const SNDBUF: i32 = 7;
    pub(crate) const RCVBUF: i32 = 8;
    pub(crate) const KEEPALIVE: i32 = 9;
    pub(crate) const OOBINLINE: i32 = 10;
    pub(crate) const NO_CHECK: i32 = 11;
    pub(crate) const PRIORITY: i32 = 12;
    pub(crate) const LINGER: i32 = 13;
    pub(crate) const BSDCOMPAT: i32 = 14;
    pub(crate) const REUSEPORT: i32 = 15;
    pub(crate) const PASSCRED: i32 = 16;
    pub(crate) const PEERCRED: i32 = 17;
    pub(crate) const RCVLOWAT: i32 = 18;
    pub(crate) const SNDLOWAT: i32 = 19;
    pub(crate) const RCVTIMEO: i32 = 20;
    pub(crate) const SNDTIMEO: i32 = 21;
    pub(crate) const BINDTODEVICE: i32 = 25;
    pub(crate) const ATTACH_FILTER: i32 = 26;
    pub(crate) const DETACH_FILTER: i32 = 27;
    pub(crate) const PEERNAME: i32 = 28;
    pub(crate) const TIMESTAMP: i32 = 29;
    pub(crate) const ACCEPTCONN: i32 = 30;
    pub(crate) const SNDBUFFORCE: i32 = 32;
    pub(crate) const RCVBUFFORCE: i32 = 33;
    pub(crate) const PASSSEC: i32 = 34;
    pub(crate) const TIMESTAMPNS: i32 = 35;
    pub(crate) const MARK: i32 = 36;
    pub(crate) const PROTOCOL: i32 = 38;
    pub(crate) const DOMAIN: i32 = 39;
    pub(crate) const RXQ_OVFL: i32 = 40;
    pub(crate) const WIFI_STATUS: i32 = 41;
    pub(crate) const PEEK_OFF: i32 = 42;
    pub(crate) const NOFCS: i32 = 43;
    pub(crate) const LOCK_FILTER: i32 = 44;
    pub(crate) const SELECT_ERR_QUEUE: i32 = 45;
    pub(crate) const BUSY_POLL: i32 = 46;
    pub(crate) const MAX_PACING_RATE: i32 = 47;
    pub(crate) const BPF_EXTENSIONS: i32 = 48;
    pub(crate) const INCOMING_CPU: i32 = 49;
    pub(crate) const ATTACH_REUSEPORT_CBPF: i32 = 51;
    pub(crate) const CNX_ADVICE: i32 = 53;
    pub(crate) const MEMINFO: i32 = 55;
    pub(crate) const INCOMING_NAPI_ID: i32 = 56;
    pub(crate) const COOKIE: i32 = 57;
    pub(crate) const ZEROCOPY: i32 = 60;
    pub(crate) const BINDTOIFINDEX: i32 = 62;
    pub(crate) const TIMESTAMP_NEW: i32 = 63;
    pub(crate) const TIMESTAMPNS_NEW: i32 = 64;
    pub(crate) const RCVTIMEO_NEW: i32 = 66;
    pub(crate) const SNDTIMEO_NEW: i32 = 67;
    pub(crate) const PREFER_BUSY_POLL: i32 = 69;
    pub(crate) const BUSY_POLL_BUDGET: i32 = 70;
    pub(crate) const NETNS_COOKIE: i32 = 71;
    pub(crate) const BUF_LOCK: i32 = 72;
    pub(crate) const RESERVE_MEM: i32 = 73;
    pub(crate) const TXREHASH: i32 = 74;
    pub(crate) const RCVMARK: i32 = 75;
}

/// `IP_*`.
pub(crate) mod ip {
    pub(crate) const TOS: i32 = 1;
    pub(crate) const TTL: i32 = 2;
    pub(crate) const HDRINCL: i32 = 3;
    pub(crate) const OPTIONS: i32 = 4;
    pub(crate) const ROUTER_ALERT: i32 = 5;
    pub(crate) const RECVOPTS: i32 = 6;
    pub(crate) const RETOPTS: i32 = 7;
    pub(crate) const PKTINFO: i32 = 8;
    pub(crate) const MTU_DISCOVER: i32 = 10;
    pub(crate) const RECVERR: i32 = 11;
    pub(crate) const RECVTTL: i32 = 12;
    pub(crate) const RECVTOS: i32 = 13;
    pub(crate) const MTU: i32 = 14;
    pub(crate) const FREEBIND: i32 = 15;
    pub(crate) const PASSSEC: i32 = 18;
    pub(crate) const TRANSPARENT: i32 = 19;
    pub(crate) const RECVORIGDSTADDR: i32 = 20;
    pub(crate) const MINTTL: i32 = 21;
    pub(crate) const NODEFRAG: i32 = 22;
    pub(crate) const CHECKSUM: i32 = 23;
    pub(crate) const BIND_ADDRESS_NO_PORT: i32 = 24;
    pub(crate) const RECVFRAGSIZE: i32 = 25;
    pub(crate) const RECVERR_RFC4884: i32 = 26;
    pub(crate) const MULTICAST_IF: i32 = 32;
    pub(crate) const MULTICAST_TTL: i32 = 33;
    pub(crate) const MULTICAST_LOOP: i32 = 34;
    pub(crate) const ADD_MEMBERSHIP: i32 = 35;
    pub(crate) const DROP_MEMBERSHIP: i32 = 36;
    pub(crate) const UNBLOCK_SOURCE: i32 = 37;
    pub(crate) const BLOCK_SOURCE: i32 = 38;
    pub(crate) const ADD_SOURCE_MEMBERSHIP: i32 = 39;
    pub(crate) const DROP_SOURCE_MEMBERSHIP: i32 = 40;
    pub(crate) const MSFILTER: i32 = 41;
    pub(crate) const MCAST_JOIN_GROUP: i32 = 42;
    pub(crate) const MCAST_BLOCK_SOURCE: i32 = 43;
    pub(crate) const MCAST_UNBLOCK_SOURCE: i32 = 44;
    pub(crate) const MCAST_LEAVE_GROUP: i32 = 45;
    pub(crate) const MCAST_JOIN_SOURCE_GROUP: i32 = 46;
    pub(crate) const MCAST_LEAVE_SOURCE_GROUP: i32 = 47;
    pub(crate) const MCAST_MSFILTER: i32 = 48;
    pub(crate) const MULTICAST_ALL: i32 = 49;
    pub(crate) const UNICAST_IF: i32 = 50;
    pub(crate) const PROTOCOL: i32 = 52;
}

/// `IPV6_*`.
pub(crate) mod ipv6 {
    pub(crate) const ADDRFORM: i32 = 1;
    pub(crate) const UNICAST_HOPS: i32 = 16;
    pub(crate) const MULTICAST_IF: i32 = 17;
    pub(crate) const MULTICAST_HOPS: i32 = 18;
    pub(crate) const MULTICAST_LOOP: i32 = 19;
    pub(crate) const ADD_MEMBERSHIP: i32 = 20;
    pub(crate) const DROP_MEMBERSHIP: i32 = 21;
    pub(crate) const MTU_DISCOVER: i32 = 23;
    pub(crate) const MTU: i32 = 24;
    pub(crate) const RECVERR: i32 = 25;
    pub(crate) const V6ONLY: i32 = 26;
    pub(crate) const MULTICAST_ALL: i32 = 29;
    pub(crate) const FLOWINFO_SEND: i32 = 33;
    pub(crate) const RECVPKTINFO: i32 = 49;
    pub(crate) const RECVHOPLIMIT: i32 = 51;
    pub(crate) const RECVHOPOPTS: i32 = 53;
    pub(crate) const RECVRTHDR: i32 = 56;
    pub(crate) const RECVDSTOPTS: i32 = 58;
    pub(crate) const RECVPATHMTU: i32 = 60;
    pub(crate) const DONTFRAG: i32 = 62;
    pub(crate) const RECVTCLASS: i32 = 66;
    pub(crate) const TCLASS: i32 = 67;
    pub(crate) const AUTOFLOWLABEL: i32 = 70;
    pub(crate) const MINHOPCOUNT: i32 = 73;
    pub(crate) const RECVORIGDSTADDR: i32 = 74;
    pub(crate) const TRANSPARENT: i32 = 75;
    pub(crate) const FREEBIND: i32 = 78;
    pub(crate) const RECVERR_RFC4884: i32 = 31;
}
