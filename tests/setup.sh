#!/usr/bin/env bash
# Installs what the demo, the tests and the benchmarks run beside Ringlab, if it is missing.
# Needs root for that, and nothing at all when everything is there.
#
#   iproute2      ip: namespaces and veth pairs that the tests make and remove
#   iputils-ping  ping: a real Linux peer asks an emulated host for echoes
#   curl          curl: a real Linux peer fetches a page from an emulated host
#   iperf3        iperf3: the reference of the throughput figures, over veth
#   python3       a real client with a thousand sockets, a real HTTP server
#   wget nginx-light redis-server redis-tools netcat-openbsd socat
#                 programs that run unmodified on emulated hosts
#   tcpdump ethtool traceroute mtr-tiny iputils-arping bind9-dnsutils dnsmasq-base lsof psmisc
#                 look at their networks: captures, NICs, ways, names, who has a socket
#   dropbear-bin wrk caddy hey busybox-static netcat-traditional
#                 shells, load (of the benchmarks, too), programs in Go, programs without shared libraries
#   openssh-server openssh-client
#                 shells, files and forwarded ports by signals, terminals and many descriptors
#   bird2 keepalived chrony rsync
#                 daemons: routes, addresses by VRRP, time, files
#   net-tools     arp, ifconfig, netstat, route: beside ip, ss and nstat, what is compared with real namespaces
#   gcc libc6-dev musl-tools procps
#                 the program of the parity tests and other static ones; sysctl for the real namespaces that it runs in
#   dpdk-dev      testpmd, DPDK's own test program: a front end of vhost-user that is not ours drives nicd. Not installed:
#                 it would bring 228 packages (34 MB, systemd among them). testpmd and what it loads (5 MB) are
#                 unpacked into target/dpdk, which takes some seconds, once
#   cargo-nextest runs the tests, each in a process of its own
#
# `setup.sh demo` installs what the demo needs: the first three.
set -euo pipefail

declare -A package=([ip]=iproute2 [ping]=iputils-ping [curl]=curl [iperf3]=iperf3 [python3]=python3
    [wget]=wget [nginx]=nginx-light [redis-server]=redis-server [redis-cli]=redis-tools [nc]=netcat-openbsd [socat]=socat
    [tcpdump]=tcpdump [wrk]=wrk [cc]=gcc [sysctl]=procps [ethtool]=ethtool [traceroute]=traceroute [mtr]=mtr-tiny
    [arping]=iputils-arping [dig]=bind9-dnsutils [dnsmasq]=dnsmasq-base [dropbear]=dropbear-bin [caddy]=caddy [hey]=hey
    [busybox]=busybox-static [nc.traditional]=netcat-traditional [nc.openbsd]=netcat-openbsd [musl-gcc]=musl-tools
    [lsof]=lsof [fuser]=psmisc [sshd]=openssh-server [ssh]=openssh-client [netstat]=net-tools
    [bird]=bird2 [keepalived]=keepalived [chronyd]=chrony [rsync]=rsync)
wanted=(ip ping curl)
[ "${1:-}" = demo ] || wanted+=(iperf3 python3 wget nginx redis-server redis-cli nc socat tcpdump wrk cc sysctl ethtool
    traceroute mtr arping dig dnsmasq dropbear caddy hey busybox nc.traditional nc.openbsd musl-gcc lsof fuser sshd ssh netstat
    bird keepalived chronyd rsync)

missing=()
for program in "${wanted[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
# gcc only recommends the headers and the C library that every program needs.
if [ "${1:-}" != demo ] && ! echo '#include <stdio.h>' | cc -E - >/dev/null 2>&1; then
    missing+=(libc6-dev)
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup: ${missing[*]} missing; install with: sudo apt-get install ${missing[*]}" >&2
        exit 3
    fi
    echo "setup: installing ${missing[*]}"
    # The servers shall not start on this machine: run level 1 has none.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# Makes target/dpdk/testpmd.
unpack_dpdk() {
    local dir=$1/target/dpdk libraries names
    # shellcheck source=tests/packages.sh
    . "$1/tests/packages.sh"
    echo "setup: unpacking DPDK's testpmd into $dir"
    rm -rf "$dir"
    mkdir -p "$dir"
    if command -v dpdk-testpmd >/dev/null; then
        ln -s "$(command -v dpdk-testpmd)" "$dir/testpmd"
        return
    fi
    if [ "$(id -u)" = 0 ]; then apt-get update -qq; fi
    fetch "$dir" dpdk-dev
    # Beside what it is linked with it loads the driver, and the rings of its buffers.
    names=$(missing_libraries "$dir/usr/bin/dpdk-testpmd")
    names+=" $(ldd "$dir/usr/bin/dpdk-testpmd" 2>/dev/null | sed -nE 's/.*librte_eal(\.so\.[0-9]+) .*/librte_net_virtio\1 librte_mempool_ring\1/p' |
        tr ' ' '\n' | package_of_library | tr '\n' ' ')"
    # shellcheck disable=SC2046,SC2086
    fetch "$dir" $(lacking $names)
    libraries=$(dirname "$(find "$dir/usr/lib" -name 'librte_eal.so.*' | head -n 1)")
    # By name alone: by path DPDK refuses them below a folder that all may write to, as /tmp.
    cat >"$dir/testpmd.new" <<END
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$dir/usr/bin/dpdk-testpmd' \
    $(cd "$libraries" && printf -- '-d %s ' librte_net_virtio.so.?? librte_mempool_ring.so.??) "\$@"
END
    chmod +x "$dir/testpmd.new"
    rm -rf "$dir/usr/share" "$dir/usr/bin/dpdk-test" "$dir/usr/include"
    if LD_LIBRARY_PATH=$libraries ldd "$dir/usr/bin/dpdk-testpmd" | grep 'not found'; then
        echo "setup: DPDK's testpmd lacks these" >&2
        exit 3
    fi
    mv "$dir/testpmd.new" "$dir/testpmd"
}

root=$(cd "$(dirname "$0")/.." && pwd)
if [ "${1:-}" != demo ] && [ ! -x "$root/target/dpdk/testpmd" ]; then
    unpack_dpdk "$root"
fi

if [ "${1:-}" != demo ] && ! cargo nextest --version >/dev/null 2>&1; then
    echo "setup: installing cargo-nextest"
    cargo install --locked --quiet cargo-nextest
fi
