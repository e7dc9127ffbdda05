//! What a host's kernel counts: names of `/proc/net/snmp`, `/proc/net/netstat`,
//! `ip -s link` and `enum skb_drop_reason`.

use crate::{Counter, Counters};

counters! {
    /// The SNMP and netstat counters, `GROUP.Name` as nstat would join them.
    pub enum Mib, MibCounters {
        IpInReceives = "Ip.InReceives", IpInHdrErrors = "Ip.InHdrErrors", IpInAddrErrors = "Ip.InAddrErrors",
        IpForwDatagrams = "Ip.ForwDatagrams", IpInUnknownProtos = "Ip.InUnknownProtos",
        IpInDelivers = "Ip.InDelivers", IpOutRequests = "Ip.OutRequests", IpOutDiscards = "Ip.OutDiscards",
        IpOutNoRoutes = "Ip.OutNoRoutes", IpReasmTimeout = "Ip.ReasmTimeout", IpReasmReqds = "Ip.ReasmReqds",
        IpReasmOKs = "Ip.ReasmOKs", IpReasmFails = "Ip.ReasmFails", IpFragOKs = "Ip.FragOKs", IpFragFails = "Ip.FragFails",
        IpFragCreates = "Ip.FragCreates", IpOutTransmits = "Ip.OutTransmits",
        IcmpInMsgs = "Icmp.InMsgs", IcmpInErrors = "Icmp.InErrors", IcmpInCsumErrors = "Icmp.InCsumErrors",
        IcmpInDestUnreachs = "Icmp.InDestUnreachs", IcmpInTimeExcds = "Icmp.InTimeExcds", IcmpInParmProbs = "Icmp.InParmProbs",
        IcmpInSrcQuenchs = "Icmp.InSrcQuenchs", IcmpInRedirects = "Icmp.InRedirects", IcmpInEchos = "Icmp.InEchos", IcmpInEchoReps = "Icmp.InEchoReps",
        IcmpInTimestamps = "Icmp.InTimestamps", IcmpInTimestampReps = "Icmp.InTimestampReps", IcmpInAddrMasks = "Icmp.InAddrMasks", IcmpInAddrMaskReps = "Icmp.InAddrMaskReps", IcmpOutMsgs = "Icmp.OutMsgs", IcmpOutErrors = "Icmp.OutErrors",
        IcmpOutRateLimitGlobal = "Icmp.OutRateLimitGlobal", IcmpOutRateLimitHost = "Icmp.OutRateLimitHost",
        IcmpOutDestUnreachs = "Icmp.OutDestUnreachs", IcmpOutTimeExcds = "Icmp.OutTimeExcds", IcmpOutParmProbs = "Icmp.OutParmProbs", IcmpOutRedirects = "Icmp.OutRedirects", IcmpOutEchos = "Icmp.OutEchos",
        IcmpOutEchoReps = "Icmp.OutEchoReps",
        TcpActiveOpens = "Tcp.ActiveOpens", TcpPassiveOpens = "Tcp.PassiveOpens", TcpAttemptFails = "Tcp.AttemptFails",
        TcpEstabResets = "Tcp.EstabResets", TcpCurrEstab = "Tcp.CurrEstab", TcpInSegs = "Tcp.InSegs", TcpOutSegs = "Tcp.OutSegs",
        TcpRetransSegs = "Tcp.RetransSegs", TcpInErrs = "Tcp.InErrs", TcpOutRsts = "Tcp.OutRsts", TcpInCsumErrors = "Tcp.InCsumErrors",
        UdpInDatagrams = "Udp.InDatagrams", UdpNoPorts = "Udp.NoPorts", UdpInErrors = "Udp.InErrors", UdpOutDatagrams = "Udp.OutDatagrams",
        UdpRcvbufErrors = "Udp.RcvbufErrors", UdpSndbufErrors = "Udp.SndbufErrors", UdpInCsumErrors = "Udp.InCsumErrors", UdpIgnoredMulti = "Udp.IgnoredMulti",
        SyncookiesSent = "TcpExt.SyncookiesSent", SyncookiesRecv = "TcpExt.SyncookiesRecv", SyncookiesFailed = "TcpExt.SyncookiesFailed",
        EmbryonicRsts = "TcpExt.EmbryonicRsts", ArpFilter = "TcpExt.ArpFilter", IPReversePathFilter = "TcpExt.IPReversePathFilter", TW = "TcpExt.TW", TWKilled = "TcpExt.TWKilled", PAWSActive = "TcpExt.PAWSActive", PAWSEstab = "TcpExt.PAWSEstab", PAWSOldAck = "TcpExt.PAWSOldAck", PAWSTimewait = "TcpExt.PAWSTimewait", BeyondWindow = "TcpExt.BeyondWindow", DelayedACKs = "TcpExt.DelayedACKs",
        DelayedACKLocked = "TcpExt.DelayedACKLocked", ListenOverflows = "TcpExt.ListenOverflows", ListenDrops = "TcpExt.ListenDrops",
        TCPHPHits = "TcpExt.TCPHPHits", TCPPureAcks = "TcpExt.TCPPureAcks", TCPHPAcks = "TcpExt.TCPHPAcks",
        TCPSackRecovery = "TcpExt.TCPSackRecovery", TCPRenoRecovery = "TcpExt.TCPRenoRecovery", TCPSACKReneging = "TcpExt.TCPSACKReneging",
        TCPLostRetransmit = "TcpExt.TCPLostRetransmit", TCPFastRetrans = "TcpExt.TCPFastRetrans", TCPSlowStartRetrans = "TcpExt.TCPSlowStartRetrans",
        TCPTimeouts = "TcpExt.TCPTimeouts", TCPLossProbes = "TcpExt.TCPLossProbes", TCPRcvCollapsed = "TcpExt.TCPRcvCollapsed",
        TCPBacklogDrop = "TcpExt.TCPBacklogDrop", TCPBacklogQueued = "TcpExt.TCPBacklogQueued", TCPDSACKOldSent = "TcpExt.TCPDSACKOldSent", TCPDSACKRecv = "TcpExt.TCPDSACKRecv",
        TCPAbortOnData = "TcpExt.TCPAbortOnData", TCPAbortOnClose = "TcpExt.TCPAbortOnClose", TCPAbortOnTimeout = "TcpExt.TCPAbortOnTimeout", TCPAbortOnLinger = "TcpExt.TCPAbortOnLinger", TCPTimeWaitOverflow = "TcpExt.TCPTimeWaitOverflow",
        TCPOFOQueue = "TcpExt.TCPOFOQueue", TCPOFOMerge = "TcpExt.TCPOFOMerge", TCPOFODrop = "TcpExt.TCPOFODrop", TCPChallengeACK = "TcpExt.TCPChallengeACK", TCPSYNChallenge = "TcpExt.TCPSYNChallenge",
        TCPRcvQDrop = "TcpExt.TCPRcvQDrop", TCPZeroWindowDrop = "TcpExt.TCPZeroWindowDrop", TCPFromZeroWindowAdv = "TcpExt.TCPFromZeroWindowAdv", TCPToZeroWindowAdv = "TcpExt.TCPToZeroWindowAdv",
        TCPWantZeroWindowAdv = "TcpExt.TCPWantZeroWindowAdv", TCPSynRetrans = "TcpExt.TCPSynRetrans", TCPOrigDataSent = "TcpExt.TCPOrigDataSent",
        TCPDelivered = "TcpExt.TCPDelivered", TCPWinProbe = "TcpExt.TCPWinProbe", TCPKeepAlive = "TcpExt.TCPKeepAlive", TCPSpuriousRtxHostQueues = "TcpExt.TCPSpuriousRtxHostQueues",
        TCPACKSkippedSynRecv = "TcpExt.TCPACKSkippedSynRecv", TCPACKSkippedPAWS = "TcpExt.TCPACKSkippedPAWS", TCPACKSkippedSeq = "TcpExt.TCPACKSkippedSeq",
        TCPACKSkippedFinWait2 = "TcpExt.TCPACKSkippedFinWait2", TCPACKSkippedTimeWait = "TcpExt.TCPACKSkippedTimeWait", TCPACKSkippedChallenge = "TcpExt.TCPACKSkippedChallenge",
        TCPBacklogCoalesce = "TcpExt.TCPBacklogCoalesce", TCPMinTTLDrop = "TcpExt.TCPMinTTLDrop", TCPLossProbeRecovery = "TcpExt.TCPLossProbeRecovery", TCPRcvCoalesce = "TcpExt.TCPRcvCoalesce", PruneCalled = "TcpExt.PruneCalled", RcvPruned = "TcpExt.RcvPruned", OfoPruned = "TcpExt.OfoPruned",
        OutOfWindowIcmps = "TcpExt.OutOfWindowIcmps", TCPReqQFullDoCookies = "TcpExt.TCPReqQFullDoCookies", TCPReqQFullDrop = "TcpExt.TCPReqQFullDrop",
        IpExtInNoRoutes = "IpExt.InNoRoutes", IpExtInTruncatedPkts = "IpExt.InTruncatedPkts", IpExtInMcastPkts = "IpExt.InMcastPkts", IpExtOutMcastPkts = "IpExt.OutMcastPkts", IpExtInBcastPkts = "IpExt.InBcastPkts", IpExtOutBcastPkts = "IpExt.OutBcastPkts",
        IpExtInOctets = "IpExt.InOctets", IpExtOutOctets = "IpExt.OutOctets", IpExtInMcastOctets = "IpExt.InMcastOctets", IpExtOutMcastOctets = "IpExt.OutMcastOctets", IpExtInBcastOctets = "IpExt.InBcastOctets", IpExtOutBcastOctets = "IpExt.OutBcastOctets",
        IpExtInCsumErrors = "IpExt.InCsumErrors", IpExtInNoEctPkts = "IpExt.InNoECTPkts", IpExtInEct1Pkts = "IpExt.InECT1Pkts", IpExtInEct0Pkts = "IpExt.InECT0Pkts", IpExtInCePkts = "IpExt.InCEPkts", IpExtReasmOverlaps = "IpExt.ReasmOverlaps",
        GroMerged = "Gro.Merged", GroHeld = "Gro.Held", ArpInRequests = "Arp.InRequests", ArpInReplies = "Arp.InReplies", ArpOutRequests = "Arp.OutRequests", ArpOutReplies = "Arp.OutReplies",
    }
}

counters! {
    /// Counters of one network device, `ip -s -s link` columns.
    pub enum Netdev, NetdevCounters {
        RxPackets = "rx_packets", TxPackets = "tx_packets", RxBytes = "rx_bytes", TxBytes = "tx_bytes",
        RxErrors = "rx_errors", TxErrors = "tx_errors", RxDropped = "rx_dropped", TxDropped = "tx_dropped",
        RxFrameErrors = "rx_frame_errors", RxLengthErrors = "rx_length_errors", Multicast = "multicast",
        QdiscDropped = "qdisc_dropped", QdiscRequeues = "qdisc_requeues", TxQueueStopped = "tx_queue_stopped",
        CarrierUp = "carrier_up_count", CarrierDown = "carrier_down_count",
    }
}

counters! {
    /// Copies of frame bytes by the host's CPU, and their octets.
    pub enum CopyKind, CopyCounters {
        UserToSkb = "copy.user_to_skb", UserToSkbBytes = "copy.user_to_skb_bytes",
        SkbToUser = "copy.skb_to_user", SkbToUserBytes = "copy.skb_to_user_bytes",
        Other = "copy.other", OtherBytes = "copy.other_bytes",
    }
}

counters! {
    /// Why a packet was dropped (Linux `enum skb_drop_reason`).
    pub enum DropReason, DropCounters {
        NotSpecified = "NOT_SPECIFIED", NoSocket = "NO_SOCKET", PktTooSmall = "PKT_TOO_SMALL", TcpCsum = "TCP_CSUM",
        SocketRcvbuff = "SOCKET_RCVBUFF", SocketBacklog = "SOCKET_BACKLOG", SocketFilter = "SOCKET_FILTER",
        UdpCsum = "UDP_CSUM", IcmpCsum = "ICMP_CSUM", OtherHost = "OTHERHOST", IpCsum = "IP_CSUM", IpInHdr = "IP_INHDR",
        IpInNoRoutes = "IP_INNOROUTES", IpInAddrErrors = "IP_INADDRERRORS", IpOutNoRoutes = "IP_OUTNOROUTES", IpRpFilter = "IP_RPFILTER", UnicastInL2Multicast = "UNICAST_IN_L2_MULTICAST", IpNoProto = "IP_NOPROTO", IpInvalidSource = "IP_INVALID_SOURCE", IpLocalSource = "IP_LOCAL_SOURCE", IpLocalNet = "IP_LOCALNET", IpInvalidDest = "IP_INVALID_DEST",
        TcpZeroWindow = "TCP_ZEROWINDOW", TcpOldData = "TCP_OLD_DATA", TcpOldSequence = "TCP_OLD_SEQUENCE", TcpOverWindow = "TCP_OVERWINDOW", TcpOfoMerge = "TCP_OFOMERGE",
        TcpRfc7323Paws = "TCP_RFC7323_PAWS", TcpRfc7323PawsAck = "TCP_RFC7323_PAWS_ACK", TcpRfc7323TwPaws = "TCP_RFC7323_TW_PAWS", TcpInvalidSequence = "TCP_INVALID_SEQUENCE", TcpInvalidEndSequence = "TCP_INVALID_END_SEQUENCE", TcpReset = "TCP_RESET", TcpInvalidSyn = "TCP_INVALID_SYN",
        TcpClose = "TCP_CLOSE", TcpOldAck = "TCP_OLD_ACK", TcpTooOldAck = "TCP_TOO_OLD_ACK", TcpAckUnsentData = "TCP_ACK_UNSENT_DATA", TcpOfoQueuePrune = "TCP_OFO_QUEUE_PRUNE", TcpOfoDrop = "TCP_OFO_DROP", TcpFlags = "TCP_FLAGS", TcpMinTtl = "TCP_MINTTL",
        TcpAbortOnData = "TCP_ABORT_ON_DATA", TcpListenOverflow = "TCP_LISTEN_OVERFLOW",
        NeighCreateFail = "NEIGH_CREATEFAIL", NeighFailed = "NEIGH_FAILED", NeighQueueFull = "NEIGH_QUEUEFULL", NeighDead = "NEIGH_DEAD",
        QdiscDrop = "QDISC_DROP", QueuePurge = "QUEUE_PURGE", CpuBacklog = "CPU_BACKLOG", UnhandledProto = "UNHANDLED_PROTO", HdrTrunc = "HDR_TRUNC", NoMem = "NOMEM",
        FragReasmTimeout = "FRAG_REASM_TIMEOUT", FragTooFar = "FRAG_TOO_FAR", DupFrag = "DUP_FRAG", FragTooBig = "PKT_TOO_BIG", DevReady = "DEV_READY",
        InvalidProto = "INVALID_PROTO", DevHdr = "DEV_HDR",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `enum skb_drop_reason` of Linux 6.18, as far as its parts exist here.
    const LINUX: &str = "NOT_SPECIFIED NO_SOCKET SOCKET_CLOSE SOCKET_FILTER SOCKET_RCVBUFF PKT_TOO_SMALL TCP_CSUM UDP_CSUM NETFILTER_DROP \
        OTHERHOST IP_CSUM IP_INHDR IP_RPFILTER UNICAST_IN_L2_MULTICAST IP_NOPROTO PROTO_MEM SOCKET_BACKLOG TCP_FLAGS TCP_ABORT_ON_DATA \
        TCP_ZEROWINDOW TCP_OLD_DATA TCP_OVERWINDOW TCP_OFOMERGE TCP_RFC7323_PAWS TCP_RFC7323_PAWS_ACK TCP_RFC7323_TW_PAWS \
        TCP_RFC7323_TSECR TCP_LISTEN_OVERFLOW TCP_OLD_SEQUENCE TCP_INVALID_SEQUENCE TCP_INVALID_END_SEQUENCE TCP_INVALID_ACK_SEQUENCE \
        TCP_RESET TCP_INVALID_SYN TCP_CLOSE TCP_OLD_ACK TCP_TOO_OLD_ACK TCP_ACK_UNSENT_DATA TCP_OFO_QUEUE_PRUNE TCP_OFO_DROP \
        IP_OUTNOROUTES NEIGH_CREATEFAIL NEIGH_FAILED NEIGH_QUEUEFULL NEIGH_DEAD QDISC_DROP CPU_BACKLOG UNHANDLED_PROTO SKB_CSUM \
        SKB_GSO_SEG SKB_UCOPY_FAULT DEV_HDR DEV_READY FULL_RING NOMEM HDR_TRUNC ICMP_CSUM INVALID_PROTO IP_INADDRERRORS IP_INNOROUTES \
        IP_LOCAL_SOURCE IP_INVALID_SOURCE IP_LOCALNET IP_INVALID_DEST PKT_TOO_BIG DUP_FRAG FRAG_REASM_TIMEOUT FRAG_TOO_FAR TCP_MINTTL \
        QUEUE_PURGE PACKET_SOCK_ERROR RECURSION_LIMIT";

    #[test]
    fn reasons_of_drops_have_the_names_of_linux() {
        for reason in DropReason::ALL {
            assert!(LINUX.split_whitespace().any(|name| name == reason.name()), "{}", reason.name());
        }
    }
}
