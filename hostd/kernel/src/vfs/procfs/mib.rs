//! `/proc/net/snmp`, `/proc/net/netstat`: counters by group, in the order in which Linux prints them.
//!
//! A counter that Linux has and this host does not keep is printed as 0: programs look columns up by
//! name, and what did not happen here has not been counted.

use crate::Kernel;
use alloc::string::String;
use core::fmt::Write as _;
use ringlab_counters::{Counter, Mib};

impl Kernel {
    /// `/proc/net/snmp`.
    pub(super) fn proc_snmp(&self) -> String {
        let mut out = String::new();
        let forwarding = if self.sysctl.ip_forward != 0 { 1 } else { 2 };
        let ip = alloc::format!("{forwarding} {}", self.sysctl.ip_default_ttl);
        self.group(&mut out, "Ip", ("Forwarding DefaultTTL ", &ip), IP);
        self.group(&mut out, "Icmp", ("", ""), ICMP);
        self.icmp_types(&mut out);
        self.group(&mut out, "Tcp", ("RtoAlgorithm RtoMin RtoMax MaxConn ", "1 200 120000 -1"), TCP);
        self.group(&mut out, "Udp", ("", ""), UDP);
        self.group(&mut out, "UdpLite", ("", ""), UDP);
        out
    }

    /// `/proc/net/netstat`.
    pub(super) fn proc_netstat(&self) -> String {
        let mut out = String::new();
        self.group(&mut out, "TcpExt", ("", ""), TCP_EXT);
        self.group(&mut out, "IpExt", ("", ""), IP_EXT);
        out
    }

    /// Two lines: names, values. `first`: names (with a space behind) and values that are no counters.
    fn group(&self, out: &mut String, group: &str, first: (&str, &str), names: &str) {
        // Infallible: writing to a string. (Also below.)
        let _ = write!(out, "{group}: {}{names}\n{group}:", first.0);
        if !first.1.is_empty() {
            let _ = write!(out, " {}", first.1);
        }
        for name in names.split(' ') {
            let _ = write!(out, " {}", self.counter(group, name));
        }
        out.push('\n');
    }

    fn counter(&self, group: &str, name: &str) -> u64 {
        let named = |m: &&Mib| m.name().split_once('.') == Some((group, name));
        Mib::ALL.iter().find(named).map_or(0, |&m| self.mib.get(m))
    }

    /// `IcmpMsg:`, only of types that have been seen.
    fn icmp_types(&self, out: &mut String) {
        let (mut names, mut values) = (String::new(), String::new());
        for (direction, rows) in [("In", ICMP_IN), ("Out", ICMP_OUT)] {
            for &(kind, counter) in rows {
                let n = self.mib.get(counter);
                if n != 0 {
                    let _ = write!(names, " {direction}Type{kind}");
                    let _ = write!(values, " {n}");
                }
            }
        }
        if !names.is_empty() {
            let _ = write!(out, "IcmpMsg:{names}\nIcmpMsg:{values}\n");
        }
    }
}

/// Types with their counters, ascending.
const ICMP_IN: &[(u8, Mib)] = &[(0, Mib::IcmpInEchoReps), (3, Mib::IcmpInDestUnreachs), (8, Mib::IcmpInEchos), (11, Mib::IcmpInTimeExcds)];
/// As [`ICMP_IN`], of what was sent.
const ICMP_OUT: &[(u8, Mib)] =
    &[(0, Mib::IcmpOutEchoReps), (3, Mib::IcmpOutDestUnreachs), (8, Mib::IcmpOutEchos), (11, Mib::IcmpOutTimeExcds)];
/// `Ip:` after `Forwarding DefaultTTL`.
const IP: &str = "\
    InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos InDiscards InDelivers OutRequests OutDiscards OutNoRoutes \
    ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs FragFails FragCreates OutTransmits";
/// `Icmp:`.
const ICMP: &str = "\
    InMsgs InErrors InCsumErrors InDestUnreachs InTimeExcds InParmProbs InSrcQuenchs InRedirects InEchos InEchoReps InTimestamps \
    InTimestampReps InAddrMasks InAddrMaskReps OutMsgs OutErrors OutRateLimitGlobal OutRateLimitHost OutDestUnreachs OutTimeExcds \
    OutParmProbs OutSrcQuenchs OutRedirects OutEchos OutEchoReps OutTimestamps OutTimestampReps OutAddrMasks OutAddrMaskReps";
/// `Tcp:` after `RtoAlgorithm RtoMin RtoMax MaxConn`.
const TCP: &str = "\
    ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs InErrs OutRsts InCsumErrors";
/// `Udp:` and `UdpLite:`.
const UDP: &str = "\
    InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors";
/// `TcpExt:`.
const TCP_EXT: &str = "\
    SyncookiesSent SyncookiesRecv SyncookiesFailed EmbryonicRsts PruneCalled RcvPruned OfoPruned OutOfWindowIcmps \
    LockDroppedIcmps ArpFilter TW TWRecycled TWKilled PAWSActive PAWSEstab BeyondWindow TSEcrRejected PAWSOldAck PAWSTimewait \
    DelayedACKs DelayedACKLocked DelayedACKLost ListenOverflows ListenDrops TCPHPHits TCPPureAcks TCPHPAcks TCPRenoRecovery \
    TCPSackRecovery TCPSACKReneging TCPSACKReorder TCPRenoReorder TCPTSReorder TCPFullUndo TCPPartialUndo TCPDSACKUndo \
    TCPLossUndo TCPLostRetransmit TCPRenoFailures TCPSackFailures TCPLossFailures TCPFastRetrans TCPSlowStartRetrans TCPTimeouts \
    TCPLossProbes TCPLossProbeRecovery TCPRenoRecoveryFail TCPSackRecoveryFail TCPRcvCollapsed TCPBacklogCoalesce TCPDSACKOldSent \
    TCPDSACKOfoSent TCPDSACKRecv TCPDSACKOfoRecv TCPAbortOnData TCPAbortOnClose TCPAbortOnMemory TCPAbortOnTimeout \
    TCPAbortOnLinger TCPAbortFailed TCPMemoryPressures TCPMemoryPressuresChrono TCPSACKDiscard TCPDSACKIgnoredOld \
    TCPDSACKIgnoredNoUndo TCPSpuriousRTOs TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure TCPSackShifted TCPSackMerged \
    TCPSackShiftFallback TCPBacklogDrop PFMemallocDrop TCPMinTTLDrop TCPDeferAcceptDrop IPReversePathFilter TCPTimeWaitOverflow \
    TCPReqQFullDoCookies TCPReqQFullDrop TCPRetransFail TCPRcvCoalesce TCPOFOQueue TCPOFODrop TCPOFOMerge TCPChallengeACK \
    TCPSYNChallenge TCPFastOpenActive TCPFastOpenActiveFail TCPFastOpenPassive TCPFastOpenPassiveFail TCPFastOpenListenOverflow \
    TCPFastOpenCookieReqd TCPFastOpenBlackhole TCPSpuriousRtxHostQueues BusyPollRxPackets TCPAutoCorking TCPFromZeroWindowAdv \
    TCPToZeroWindowAdv TCPWantZeroWindowAdv TCPSynRetrans TCPOrigDataSent TCPHystartTrainDetect TCPHystartTrainCwnd \
    TCPHystartDelayDetect TCPHystartDelayCwnd TCPACKSkippedSynRecv TCPACKSkippedPAWS TCPACKSkippedSeq TCPACKSkippedFinWait2 \
    TCPACKSkippedTimeWait TCPACKSkippedChallenge TCPWinProbe TCPKeepAlive TCPMTUPFail TCPMTUPSuccess TCPDelivered TCPDeliveredCE \
    TCPAckCompressed TCPZeroWindowDrop TCPRcvQDrop TCPWqueueTooBig TCPFastOpenPassiveAltKey TcpTimeoutRehash \
    TcpDuplicateDataRehash TCPDSACKRecvSegs TCPDSACKIgnoredDubious TCPMigrateReqSuccess TCPMigrateReqFailure TCPPLBRehash \
    TCPAORequired TCPAOBad TCPAOKeyNotFound TCPAOGood TCPAODroppedIcmps";
/// `IpExt:`.
const IP_EXT: &str = "\
    InNoRoutes InTruncatedPkts InMcastPkts OutMcastPkts InBcastPkts OutBcastPkts InOctets OutOctets InMcastOctets OutMcastOctets \
    InBcastOctets OutBcastOctets InCsumErrors InNoECTPkts InECT1Pkts InECT0Pkts InCEPkts ReasmOverlaps";
