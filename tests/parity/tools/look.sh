# Cases of the family `tools`: what Debian's programs print on a host. `look.sh END WHAT`: END is `a` or `b`, WHAT `host` or `sockets`.
#
# What cannot be equal is made so, in both worlds alike: kind and peer of the interface (a veth there, a virtio NIC here), times,
# numbers of inodes, cookies and slots, memory that a kernel's or a driver's build decides, and IPv6 and MPTCP, which are not here.
end=$1
export LC_ALL=C COLUMNS=200 NSTAT_HISTORY=/dev/null

# t NAME COMMAND [SED]
t() {
    echo "== tools/${end}_$1"
    sh -c "$2" 2>&1 | sed -E "s/@if[0-9]+//; s/ link-netns(id)? [^ ]+//; /Failed to find cgroup2 mount/d; ${3:-}"
}

# The address, its lifetime and its neighbours say the same; counters of packets differ by what was sent before.
counts='s/[0-9.]+( [KM]?i?B)?/N/g'
seconds='s/[0-9.]+ ?ms/T ms/g'

host() {
    t ip_addr 'ip addr'
    t ip_o_addr 'ip -o addr'
    t ip_br_addr 'ip -br addr' 's/ +/ /g'
    t ip_link 'ip link'
    t ip_br_link 'ip -br link' 's/ +/ /g'
    # A veth has a queue for each CPU, and cuts no segments.
    t ip_d_link 'ip -o -d link' 's/\\ +veth//; s/addrgenmode [a-z0-9]+ //; s/num([rt])xqueues [0-9]+/num\1xqueues N/g; s/tso_max_size [0-9]+/tso_max_size N/; s/ +/ /g'
    t ip_s_link 'ip -s link' '/^ +[0-9]/'"$counts"'; s/ +/ /g'
    t ip_s_s_link 'ip -s -s link' '/^ +[0-9]/'"$counts"'; s/ +/ /g'
    t ip_route 'ip route'
    t ip_route_all 'ip route show table all' '/^(ff00|fe80|local ::1|anycast|multicast)/d'
    t ip_route_local 'ip route show table local'
    t ip_d_route 'ip -d route'
    for to in 10.99.0.2 10.99.0.1 127.0.0.1 10.99.0.255 255.255.255.255 224.0.0.5 8.8.8.8; do
        t ip_route_get_$to "ip route get $to"
    done
    t ip_route_get_from 'ip route get 10.99.0.1 from 10.99.0.2 iif eth0'
    t ip_route_fibmatch 'ip route get fibmatch 10.99.0.2'
    t ip_rule 'ip rule'
    t ip_maddr 'ip maddr' '/inet6/d; /33:33:/d'
    t ip_netconf 'ip netconf' '/^inet6/d'
    t ip_ntable 'ip ntable show name arp_cache' 's/refcnt [0-9]+/refcnt N/; s/ reachable [0-9]+/ reachable T/'
    t tc_qdisc 'tc qdisc' 's/pfifo_fast 8[0-9a-f]+:/pfifo_fast 0:/; s/refcnt 3/refcnt 2/'
    t tc_s_qdisc 'tc -s qdisc show dev eth0' 's/pfifo_fast 8[0-9a-f]+:/pfifo_fast 0:/; s/refcnt 3/refcnt 2/; /Sent/'"$counts"
    t tc_class 'tc class show dev eth0; tc filter show dev eth0'
    t bridge_fdb 'bridge fdb' '/33:33:/d'
    t json_addr 'ip -j addr'
    t json_link 'ip -j link'
    t json_d_link 'ip -j -d link'
    t json_route 'ip -j route'
    t json_route_all 'ip -j route show table all'
    t ping 'ping -c 2 -i 0.2 10.99.0.2' 's/time[= ][0-9.]+ ?ms/time T/; s|= [0-9.]+/[0-9./]+ ms|= T|'
    t ping_nobody 'ping -c 1 -W 10 10.99.0.77' 's/time [0-9]+ms/time T/'
    t ping_loopback 'ping -q -c 1 127.0.0.1' 's/time [0-9]+ms/time T/; s|= [0-9.]+/[0-9./]+ ms|= T|'
    t arping 'arping -c 1 -I eth0 10.99.0.2' "$seconds"
    t traceroute 'traceroute -n -q 1 10.99.0.2' "$seconds"
    t tracepath 'tracepath -n 10.99.0.2' "$seconds"
    t ip_neigh 'ip neigh | sort' 's/(REACHABLE|DELAY|STALE)/VALID/'
    t ip_s_neigh 'ip -s neigh | sort' 's/(REACHABLE|DELAY|STALE)/VALID/; s/ ref 1//; s#used [0-9/]+#used T#; s/probes [0-9]+/probes N/'
    t json_neigh 'ip -j neigh show 10.99.0.2 | sed -E s/REACHABLE\|DELAY\|STALE/VALID/g'
    t arp_n 'arp -n | sort'
    t route_n 'route -n; route -C 2>&1 | head -n 3'
    t netstat_rn 'netstat -rn'
    t netstat_g 'netstat -gn' '/ff0[0-9]::/d'
    t netstat_i 'netstat -i' '/BMRU|LRU/{s/ +[0-9]+/ N/g}'
    t ifconfig 'ifconfig -a' '/packets|errors/'"$counts"
    t ifconfig_s 'ifconfig -s' 's/ +[0-9]+/ N/g'
    # What the kernel was built with decides which names there are.
    t netstat_names 'head -qn 1 /proc/net/netstat; sed -n "/^IpExt/p" /proc/net/netstat | head -n 1'
    t snmp_names 'grep -E "^(Ip|Icmp|Tcp|Udp|UdpLite): [A-Z]" /proc/net/snmp' 's/MemErrors//; s/ +$//'
    t snmp_fixed 'grep -E "^Tcp: [0-9]" /proc/net/snmp | cut -d " " -f 2-5; grep -E "^Ip: [0-9]" /proc/net/snmp | cut -d " " -f 2-3'
    t proc_dev 'cat /proc/net/dev' '/:/s/ +[0-9]+/ N/g'
    t proc_route 'cat /proc/net/route'
    t proc_arp 'sort /proc/net/arp'
    t proc_igmp 'cat /proc/net/igmp' 's/:[0-9A-F]{8}\t/:T\t/'
    t proc_dev_mcast 'cat /proc/net/dev_mcast' '/3333/d; s/ +/ /g'
    t proc_ptype 'cat /proc/net/ptype' '/^(0800|0806|Type)/!d; s/ +/ /g'
    t proc_softnet 'head -n 1 /proc/net/softnet_stat' 's/[0-9a-f]{8}/N/g'
    t proc_sockstat 'cat /proc/net/sockstat' 's/[0-9]+/N/g'
    t proc_psched 'cat /proc/net/psched'
    t proc_rt_cache 'cat /proc/net/rt_cache'
    t proc_empty 'cat /proc/net/raw /proc/net/icmp /proc/net/udplite /proc/net/packet'
    t proc_heads 'head -qn 1 /proc/net/tcp /proc/net/udp /proc/net/netlink /proc/net/unix /proc/net/protocols'
    # An exchange of known packets, and what it counts.
    t nstat_ping 'export NSTAT_HISTORY=$(mktemp); nstat -n; ping -q -c 3 -i 0.2 10.99.0.2 >/dev/null; nstat; rm $NSTAT_HISTORY' '/6/d; s/ +0.0$//'
    t nstat_refused 'export NSTAT_HISTORY=$(mktemp); nstat -n; nc.openbsd -z 10.99.0.2 99; nc.openbsd -u -w 1 -z 10.99.0.2 99; nstat; rm $NSTAT_HISTORY' '/^Icmp6|6In|6Out/d; s/ +0.0$//'
    # Names and their order; what a NIC can is its own.
    t ethtool_k 'ethtool -k eth0' 's/: (on|off).*//'
    t ethtool_p 'ethtool -P eth0' 's/[0-9a-f:]{17}|not set/M/'
    t route_ioctl 'route add default gw 10.99.0.9; route del default; echo $?; route del default; echo $?; route add -host 10.8.8.8 dev eth0
        route add -net 10.10.0.0/16 dev eth0 metric 5; route add -net 10.11.0.0/16 gw 10.99.0.9; route add -net 10.12.0.0/16 dev eth9; ip route
        route del -host 10.8.8.8; route del -net 10.10.0.0/16 dev eth0; route del -net 10.11.0.0/16; ip route'
    t alias_ioctl 'ifconfig eth0:1 10.7.7.7; ip -o -4 addr; ifconfig eth0:1 10.7.7.8 netmask 255.255.0.0; ip -o -4 addr; ifconfig -a | grep -A 1 eth0
        ip route; ifconfig eth0:1 down; ip -o -4 addr' 's/flags=.*//'
    # Last, for all that is known of the network goes with it.
    own=$(ip -o -4 addr show dev eth0 | sed -E 's/.* inet ([^ ]+) .*/\1/')
    t last_addr "ip route add 10.77.0.0/16 via 10.99.0.9; ip route add 10.78.0.0/16 dev eth0; ip route add 10.79.0.0/16 via 10.99.0.9 src ${own%/*}
        ip neigh replace 10.99.0.9 lladdr 02:00:00:00:00:09 dev eth0; ip addr add 10.98.0.1/24 dev eth0
        ip addr del 10.98.0.1/24 dev eth0; ip route; ip addr del $own dev eth0; ip route show table all; ip neigh
        ip addr add $own dev eth0; ip route" '/^(ff00|fe80|local ::1|anycast|multicast)/d'
}

sockets() {
    pids='s/ +users:.*//; s/Process *$//; s/ +$//'
    names='s/ino:[0-9]+/ino:I/; s/sk:[0-9a-f]+/sk:S/; s/ cgroup:[^ ]+//'
    # Times are less than a minute; buffers for sending are as large as a packet's headers, of which each build has its own idea.
    times='s/(rtt|minrtt|rcv_rtt|lastsnd|lastrcv|lastack):[0-9.]{1,5}[0-9./]{0,12}/\1:T/g; s/(send|pacing_rate|delivery_rate) [0-9]+bps/\1 R/g; s/rto:2[0-9][02468]( |$)/rto:2xx\1/; s/ (busy|rcv_rtt|rwnd_limited|sndbuf_limited):[^ ]+//g; s/tb46080/tb87040/'
    # Memory of received packets is the driver's, and the window grows with what it thinks of it.
    memory='s/\(r[1-9][0-9]*/(rN/; s/,f[0-9]+/,fN/; s/(rcv_ssthresh|snd_wnd):[0-9]+/\1:N/g'
    states='( sport = :8001 or dport = :8001 or sport = :8002 or dport = :8002 or sport = :8004 or dport = :8004 or sport = :8006 or dport = :8006 or sport = :8007 or dport = :8007 )'
    t ss_tan 'ss -Htan | sort' "/800[3]/d; s/ +/ /g; $pids"
    t ss_head 'ss -tan | head -n 1' 's/ +/ /g'
    t ss_tlnp 'ss -Htlnp | sort' "s/ +/ /g; $pids"
    t ss_uanm 'ss -Huanm | sort' "s/ +/ /g; s/^([A-Z]+) [0-9]+/\1 N/; $memory; $pids"
    t ss_wan 'ss -Hwan' "s/ +/ /g; $pids"
    t ss_state 'ss -tn state established "( dport = :8001 or sport = :8001 )"' 's/ +/ /g'
    t ss_exclude 'ss -Htn4 exclude established exclude time-wait | sort' 's/ +/ /g'
    t ss_dst 'ss -Htn dst 10.99.0.0/24 dport ge :18004 | sort; ss -Htn src 10.99.0.1:18002' 's/ +/ /g'
    t ss_sockopt "ss -Htn --inet-sockopt '$states' | sort" 's/[[:space:]]+/ /g'
    t ss_tieomn "ss -HOtieomn '$states' | sort" "s/[[:space:]]+/ /g; $names; $times; $memory; /800[2]/s/ (segs_in|segs_out):[0-9]+/ \1:N/g; s/ +$//"
    t ss_unsent "ss -HOtieomn '( sport = :8003 or dport = :8003 )' | grep -v LISTEN | sed -E 's/[[:space:]]+/ /g' | tr ' ' '\n' | sed -E 's/[:(].*//; /^[0-9.]+(bps)?$/d' | sort -u" '/^(busy|rcv_rtt|rwnd_limited|sndbuf_limited|notsent|retrans|dsack_dups|bytes_retrans|lost|app_limited|ato|backoff|ssthresh|unacked|cgroup|10.*)$/d'
    t ss_timewait 'ss -Htano state time-wait' 's/ +/ /g; s/timewait,[0-9]+(sec|s)/timewait,T/'
    t ss_tieml 'ss -HOtieml | sort' "s/[[:space:]]+/ /g; $names"
    t ss_s 'ss -s | tail -n 7; ss -s | sed -n "s/.*(\(estab.*\), closed.*\(orphaned.*\))/\1 \2/p"'
    t proc_tcp 'tail -n +2 /proc/net/tcp | cut -c 7- | sort' '/(1F43|4653) /d; s/ (02|03|04|01):[0-9A-F]{8}/ \1:T/; s/ [0-9]+ ([1-9]) [0-9a-f]{16} / I \1 P /; s/ +/ /g; s/ I [0-9] P 2/ I R P 2/; s/ P 2[0-9] 4 [0-9]+ 10 / P 2T 4 Q 10 /'
    t proc_udp 'tail -n +2 /proc/net/udp | cut -c 7- | sort' 's/:[0-9A-F]{8} 00/:N 00/; s/ [0-9]+ ([1-9]) [0-9a-f]{16} / I \1 P /; s/ +/ /g'
    t proc_raw 'cat /proc/net/raw' 's/^ +[0-9]+:/ N:/; s/ [0-9]+ ([1-9]) [0-9a-f]{16} / I \1 P /'
    t proc_sockstat 'cat /proc/net/sockstat' 's/(mem|alloc|used) [0-9]+/\1 N/g'
    t netstat_tuan 'netstat -tuan | tail -n +3 | sort' '/800[3]/d; /^udp/s/ [0-9]+ / N /; s/ +/ /g'
    t netstat_tuo 'netstat -tno | tail -n +3 | sort' '/800[3]/d; s/([a-z]+) \([0-9.]+/\1 (T/; s/ +/ /g'
}

"$2"
