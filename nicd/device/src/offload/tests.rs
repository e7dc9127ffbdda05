use super::*;
use crate::testing::{Scattered, bytes_of, cuts};
use alloc::vec;
use alloc::vec::Vec;
use etherparse::{IpNumber, Ipv4Header, SlicedPacket, TcpHeader, TransportSlice, UdpHeader};
use proptest::prelude::*;

/// A TCP frame before it is cut, as etherparse sees it.
#[derive(Debug, Clone)]
struct Large {
    tags: Vec<u16>,
    ip: Ipv4Header,
    tcp: TcpHeader,
    payload: Vec<u8>,
    gso_size: u16,
}

impl Large {
    fn ether(&self) -> Vec<u8> {
        let mut b = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        for tci in &self.tags {
            b.extend([0x81, 0x00]);
            b.extend(tci.to_be_bytes());
        }
        b.extend([0x08, 0x00]);
        b
    }

    fn emit(&self, ip: &Ipv4Header, tcp: &TcpHeader, payload: &[u8]) -> Vec<u8> {
        let mut b = self.ether();
        b.extend(ip.to_bytes());
        b.extend(tcp.to_bytes());
        b.extend(payload);
        b
    }

    fn frame(&self) -> Vec<u8> {
        self.emit(&self.ip, &self.tcp, &self.payload)
    }

    fn vnet(&self) -> VnetHdr {
        VnetHdr {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: 0, // a hint, and a wrong one
            gso_size: self.gso_size,
            csum_start: (self.ether().len() + self.ip.header_len()) as u16,
            csum_offset: 16,
            num_buffers: 0,
        }
    }

    /// The segments, made by etherparse.
    fn expected(&self) -> Vec<Vec<u8>> {
        let parts: Vec<&[u8]> = if self.payload.is_empty() { vec![&[]] } else { self.payload.chunks(usize::from(self.gso_size)).collect() };
        let last = parts.len() - 1;
        let mut at = 0;
        parts
            .iter()
            .enumerate()
            .map(|(i, part)| {
                let (mut ip, mut tcp) = (self.ip.clone(), self.tcp.clone());
                ip.set_payload_len(tcp.header_len() + part.len()).unwrap();
                ip.identification = ip.identification.wrapping_add(i as u16);
                ip.header_checksum = ip.calc_header_checksum();
                tcp.sequence_number = tcp.sequence_number.wrapping_add(at);
                tcp.cwr &= i == 0;
                tcp.fin &= i == last;
                tcp.psh &= i == last;
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, part).unwrap();
                at += part.len() as u32;
                self.emit(&ip, &tcp, part)
            })
            .collect()
    }
}

prop_compose! {
    fn ip_header()(
        id in any::<u16>(), ttl in any::<u8>(), ecn in 0u8..4, df in any::<bool>(),
        src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), options in 0usize..=10,
    ) -> Ipv4Header {
        let mut ip = Ipv4Header::new(0, ttl, IpNumber::TCP, src, dst).unwrap();
        ip.identification = id;
        ip.dont_fragment = df;
        ip.ecn = ecn.try_into().unwrap();
        ip.options = vec![1; options * 4].as_slice().try_into().unwrap();
        ip
    }
}

prop_compose! {
    fn tcp_header()(
        ports in any::<(u16, u16)>(), seq in any::<u32>(), ack in any::<u32>(), window in any::<u16>(),
        bits in any::<[bool; 6]>(), partial in any::<u16>(), options in 0usize..=10,
    ) -> TcpHeader {
        let mut tcp = TcpHeader::new(ports.0, ports.1, seq, window);
        tcp.acknowledgment_number = ack;
        [tcp.fin, tcp.psh, tcp.ack, tcp.cwr, tcp.ece, tcp.ns] = bits;
        tcp.checksum = partial;
        tcp.set_options_raw(&vec![1; options * 4]).unwrap();
        tcp
    }
}

prop_compose! {
    fn large()(
        tags in prop::collection::vec(any::<u16>(), 0..=2), ip in ip_header(), tcp in tcp_header(),
        payload in prop::collection::vec(any::<u8>(), 0..9000), gso_size in prop_oneof![Just(1448u16), MIN_GSO_SIZE..4000, Just(u16::MAX)],
    ) -> Large {
        let mut ip = ip;
        ip.set_payload_len(tcp.header_len() + payload.len()).unwrap();
        Large { tags, ip, tcp, payload, gso_size }
    }
}

fn view(bytes: &[u8]) -> FrameView {
    let mut view = FrameView::empty();
    view.load_bytes(bytes).unwrap();
    view
}

fn cut(frame: &[u8], vnet: &VnetHdr, cuts: &[usize], dst_cuts: &[usize]) -> Vec<Vec<u8>> {
    let scattered = Scattered::new(frame, cuts);
    let pieces = scattered.pieces();
    let view = FrameView::read(&pieces).unwrap();
    let Ok(Offload::Tso(tso)) = check(vnet, &view) else { panic!("{:?}", check(vnet, &view)) };
    let mut segments = Segments::new(tso, &view, &pieces);
    let mut out = Vec::new();
    while let Some(len) = segments.next_len() {
        assert_eq!(segments.remaining(), tso.segments() - out.len() as u32);
        let small = Scattered::room(len - 1, dst_cuts);
        assert_eq!(segments.emit(&small.pieces()), Err(NoRoom { need: len, have: len - 1 }));
        let room = Scattered::room(len + 5, dst_cuts);
        assert_eq!(segments.emit(&room.pieces()), Ok(Some(len)));
        let mut bytes = room.bytes();
        assert_eq!(bytes.split_off(len), [0xee; 5], "nothing is written behind the segment");
        out.push(bytes);
    }
    assert_eq!(segments.emit(&pieces), Ok(None));
    out
}

proptest! {
    #[test]
    fn segments_are_those_that_etherparse_makes(large in large(), c in cuts(), d in cuts()) {
        let got = cut(&large.frame(), &large.vnet(), &c, &d);
        let want = large.expected();
        prop_assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn segments_parse_verify_and_join_to_the_payload(large in large(), c in cuts()) {
        let mut joined = Vec::new();
        let segments = cut(&large.frame(), &large.vnet(), &c, &[]);
        let count = segments.len();
        for (i, segment) in segments.iter().enumerate() {
            let parsed = SlicedPacket::from_ethernet(segment).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net else { panic!("not IPv4") };
            let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { panic!("not TCP") };
            let header = ip.header().to_header();
            prop_assert_eq!(header.calc_header_checksum(), header.header_checksum);
            let sum = tcp.calc_checksum_ipv4(header.source, header.destination).unwrap();
            prop_assert_eq!(sum, tcp.checksum());
            prop_assert_eq!(tcp.sequence_number(), large.tcp.sequence_number.wrapping_add(joined.len() as u32));
            prop_assert!(tcp.payload().len() <= usize::from(large.gso_size));
            prop_assert!(i + 1 == count || !tcp.fin() && !tcp.psh());
            prop_assert!(i == 0 || !tcp.cwr());
            joined.extend_from_slice(tcp.payload());
        }
        prop_assert_eq!(joined, large.payload);
    }

    #[test]
    fn checked_lengths_add_up(large in large()) {
        let frame = large.frame();
        let Ok(Offload::Tso(tso)) = check(&large.vnet(), &view(&frame)) else { panic!("refused") };
        let total: usize = (0..tso.segments()).map(|n| tso.segment_len(n)).sum();
        prop_assert_eq!(total, large.payload.len() + tso.segments() as usize * tso.header_len());
        let wire: u64 = (0..tso.segments()).map(|n| crate::wire::octets(tso.segment_len(n))).sum();
        prop_assert_eq!(crate::wire::octets_of(frame.len(), &Offload::Tso(tso)), wire);
        // What goes on whole says the same again.
        prop_assert_eq!(check(&Offload::Tso(tso).to_vnet(), &view(&frame)), Ok(Offload::Tso(tso)));
    }

    #[test]
    fn completed_checksum_is_that_of_etherparse(
        ip in ip_header(), tcp in tcp_header(), payload in prop::collection::vec(any::<u8>(), 0..3000), c in cuts(), d in cuts(), udp in any::<bool>(),
    ) {
        let mut ip = ip;
        let (l4_len, at) = if udp { (8, 6) } else { (tcp.header_len(), 16) };
        ip.protocol = if udp { IpNumber::UDP } else { IpNumber::TCP };
        ip.set_payload_len(l4_len + payload.len()).unwrap();
        let mut udp_header = UdpHeader::without_ipv4_checksum(tcp.source_port, tcp.destination_port, payload.len()).unwrap();
        let mut tcp = tcp;
        let mut head = vec![0u8; 12];
        head.extend([0x08, 0x00]);
        head.extend(ip.to_bytes());
        let start = head.len();
        // What a driver leaves in the field: the sum of the pseudo-header, not complemented.
        let mut pseudo = Checksum::default();
        pseudo.add(&ip.source);
        pseudo.add(&ip.destination);
        pseudo.add_word(u16::from(ip.protocol.0));
        pseudo.add_word((l4_len + payload.len()) as u16);
        let pseudo = !pseudo.finish();
        let [got, want] = [true, false].map(|partial| {
            let mut b = head.clone();
            if udp {
                udp_header.checksum = if partial { pseudo } else { udp_header.calc_checksum_ipv4(&ip, &payload).unwrap() };
                b.extend(udp_header.to_bytes());
            } else {
                tcp.checksum = if partial { pseudo } else { tcp.calc_checksum_ipv4(&ip, &payload).unwrap() };
                b.extend(tcp.to_bytes());
            }
            b.extend(&payload);
            b
        });
        let vnet = VnetHdr { flags: F_NEEDS_CSUM, csum_start: start as u16, csum_offset: at, ..VnetHdr::default() };
        let frame = Scattered::new(&got, &c);
        let offload = check(&vnet, &FrameView::read(&frame.pieces()).unwrap());
        let Ok(Offload::Csum(csum)) = offload else { panic!("{offload:?}") };
        let dst = Scattered::room(got.len(), &d);
        prop_assert_eq!(copy_whole(&frame.pieces(), Some(csum), &dst.pieces()), Ok(got.len()));
        prop_assert_eq!(&dst.bytes(), &want);
        prop_assert_eq!(frame.bytes(), got, "the sender's memory stays as it was");
        csum.complete(&frame.pieces());
        prop_assert_eq!(&frame.bytes(), &want);
    }
}

fn sample() -> Large {
    let mut ip = Ipv4Header::new(0, 64, IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
    let mut tcp = TcpHeader::new(1, 2, u32::MAX - 999, 64240);
    (ip.identification, tcp.ack) = (u16::MAX, true);
    let payload: Vec<u8> = (0..2500u32).map(|i| i as u8).collect();
    ip.set_payload_len(tcp.header_len() + payload.len()).unwrap();
    Large { tags: vec![], ip, tcp, payload, gso_size: 1000 }
}

#[test]
fn identification_and_sequence_number_wrap() {
    let large = sample();
    let segments = cut(&large.frame(), &large.vnet(), &[], &[]);
    let field = |s: &[u8], at: usize| u32::from_be_bytes([s[at], s[at + 1], s[at + 2], s[at + 3]]);
    let ids: Vec<_> = segments.iter().map(|s| field(s, 18) >> 16).collect();
    let seqs: Vec<_> = segments.iter().map(|s| field(s, 38)).collect();
    assert_eq!((ids, seqs), (vec![0xffff, 0, 1], vec![u32::MAX - 999, 0, 1000]));
}

#[test]
fn each_lie_is_refused_by_name() {
    let large = sample();
    let (frame, good) = (large.frame(), large.vnet());
    let refuse = |vnet: VnetHdr, frame: &[u8]| check(&vnet, &view(frame)).expect_err("hostile");
    let edit = |at: usize, value: u8| {
        let mut f = frame.clone();
        f[at] = value;
        f
    };
    assert!(matches!(check(&good, &view(&frame)), Ok(Offload::Tso(_))));
    assert_eq!(refuse(VnetHdr { gso_size: 7, ..good }, &frame), BadGso::Size(7));
    assert_eq!(refuse(VnetHdr { gso_type: 5, ..good }, &frame), BadGso::Type(5));
    assert_eq!(refuse(VnetHdr { gso_type: GSO_ECN, flags: F_NEEDS_CSUM, csum_start: 0, ..good }, &frame).csum_start(), Some(0));
    assert_eq!(refuse(VnetHdr { flags: 0, ..good }, &frame), BadGso::CsumPlace);
    assert_eq!(refuse(VnetHdr { csum_start: 36, ..good }, &frame), BadGso::CsumPlace);
    assert_eq!(refuse(VnetHdr { csum_offset: 6, ..good }, &frame), BadGso::CsumPlace);
    assert_eq!(
        refuse(VnetHdr { csum_start: u16::MAX, csum_offset: u16::MAX, ..good }, &frame),
        BadGso::CsumOutside { start: u16::MAX, offset: u16::MAX, len: 2554 }
    );
    assert_eq!(refuse(good, &edit(23, 17)), BadGso::NotTcp4);
    assert_eq!(refuse(good, &edit(20, 0x20)), BadGso::NotTcp4, "a fragment");
    assert_eq!(refuse(good, &edit(14, 0x65)), BadGso::NotTcp4, "version 6");
    assert_eq!(refuse(good, &edit(17, 0)), BadGso::Length, "IP's total length");
    assert_eq!(refuse(good, &edit(46, 0x40)), BadGso::Length, "TCP's data offset");
    assert_eq!(refuse(good, &edit(47, SYN)), BadGso::Flags(SYN));
    assert_eq!(refuse(good, &edit(47, RST)), BadGso::Flags(RST));
    assert_eq!(refuse(VnetHdr { csum_offset: 0, ..good }, &frame[..40]), BadGso::Length, "no room for a TCP header");
}

impl BadGso {
    fn csum_start(&self) -> Option<u16> {
        if let BadGso::CsumOutside { start, .. } = self { Some(*start) } else { None }
    }
}

#[test]
fn checksum_field_may_end_with_the_frame_and_start_behind_the_ethernet_header() {
    let frame = [0; 60];
    let at = |start, offset| {
        check(&VnetHdr { flags: F_NEEDS_CSUM, csum_start: start, csum_offset: offset, ..VnetHdr::default() }, &view(&frame))
    };
    assert!(at(14, 44).is_ok() && at(58, 0).is_ok());
    assert_eq!(at(14, 45), Err(BadGso::CsumOutside { start: 14, offset: 45, len: 60 }));
    assert_eq!(at(13, 0), Err(BadGso::CsumOutside { start: 13, offset: 0, len: 60 }));
}

#[test]
fn udp_checksum_that_comes_out_as_zero_is_sent_as_ones() {
    let mut frame = vec![0u8; 14 + 20 + 8 + 2];
    (frame[12], frame[14], frame[23]) = (8, 0x45, 17);
    frame[42..44].copy_from_slice(&[0xff, 0xff]); // the octets sum to ffff, the complement is 0
    let pieces = Scattered::new(&frame, &[35]);
    let vnet = VnetHdr { flags: F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..VnetHdr::default() };
    let Ok(Offload::Csum(csum)) = check(&vnet, &view(&frame)) else { panic!("refused") };
    csum.complete(&pieces.pieces());
    assert_eq!(bytes_of(&pieces.pieces())[40..42], [0xff, 0xff]);
}

#[test]
fn header_for_the_receiver_holds_nothing_unchecked() {
    let hostile = VnetHdr { flags: 0xfe, gso_type: 0, hdr_len: 9, gso_size: 9, csum_start: 9, csum_offset: 9, num_buffers: 9 };
    let offload = check(&hostile, &view(&sample().frame())).unwrap();
    assert_eq!(offload.to_vnet(), VnetHdr { num_buffers: 1, ..VnetHdr::default() });
    assert_eq!((offload, offload.segments()), (Offload::None, 1));
}

#[test]
fn copy_without_room_writes_nothing() {
    let (frame, dst) = (Scattered::new(&[7; 100], &[50]), Scattered::room(99, &[10]));
    assert_eq!(copy_whole(&frame.pieces(), None, &dst.pieces()), Err(NoRoom { need: 100, have: 99 }));
    assert_eq!(dst.bytes(), [0xee; 99]);
}
