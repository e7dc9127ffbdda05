#!/usr/bin/env bash
# A real Linux kernel drives nicd: QEMU is the vhost-user front end, its guest's virtio_net the driver.
#
#   guest (Linux, QEMU) ── nicd by hand ── TAP ── bridge of the real Linux node "gate" ── TAP ── nicd ── cable ── nicd ── hostd "web"
#
# The guest asks the emulated host for echoes, fetches a file from it, sends one to it, is asked for echoes, and loads its
# driver anew.
# Ends with status 0 only if all of it held. Needs root (for "gate"), no KVM, and unpacks what it uses (42 MB of packages)
# into target/interop: nothing is installed. On demand: `make interop`, not part of `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/packages.sh
. tests/packages.sh
bin=${RINGLAB_BIN:-$PWD/target/release}
export PATH="$bin:$PATH"
there=$PWD/target/interop
# A state directory of its own: labs that are up stay untouched.
RINGLAB_DIR=$(mktemp -d "${TMPDIR:-/tmp}/ringlab-interop.XXXXXX")
export RINGLAB_DIR
work=$RINGLAB_DIR/work
qemu='' nicd='' sink=''

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

finish() {
    status=$?
    trap - EXIT
    for pid in $qemu $sink $nicd; do kill "$pid" 2>/dev/null || true; done
    wait
    if [ $status != 0 ]; then tail -n 40 "$work"/*.log 2>/dev/null >&2 || true; fi
    labctl destroy --all >/dev/null 2>&1 || true
    rm -rf "$RINGLAB_DIR"
    [ $status = 0 ] || echo "interop: FAILED with status $status" >&2
    exit $status
}
trap finish EXIT

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        if [ $SECONDS -ge $end ]; then
            echo "interop: not within the time given: $*" >&2
            return 1
        fi
        sleep 0.1
    done
}

# What the guest says of one thing.
guest() { sed -nE "s/^guest: $1 ?//p" "$work/guest.log" | tr -d '\r' | head -n 1; }
guest_said() { grep -qs "^guest: $1" "$work/guest.log"; }

unpack() {
    local kernel
    [ ! -e "$there/complete" ] || return 0
    say "Unpacking QEMU and a Linux kernel into $there"
    rm -rf "$there"
    if [ "$(id -u)" = 0 ]; then apt-get update -qq; fi
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" {print $2; exit}')
    # shellcheck disable=SC2046
    fetch "$there" $(lacking qemu-system-x86) "$kernel" busybox-static cpio
    touch "$there/complete"
}

# The first file system: busybox, the modules of virtio_net, and what the guest does.
initramfs() {
    local root=$work/guest module
    mkdir -p "$root"/{bin,proc,sys,dev,m,tmp}
    cp "$busybox" "$root/bin/"
    for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net; do
        find "$there/lib/modules" -name "$module.ko" -exec cp {} "$root/m/" \;
    done
    cp tests/interop-guest.sh "$root/init"
    chmod +x "$root/init"
    (cd "$root" && find . | "$(program cpio)" -o -H newc --quiet) | gzip -1 >"$work/initramfs.gz"
}

start_qemu() {
    local libraries
    libraries=$(dirname "$(find "$there/usr/lib" -name 'libcapstone.so.*' | head -n 1)")
    # Without KVM the interrupts of vhost-user must be plain ones (vectors=0): QEMU 7.2 takes KVM's for granted
    # where it masks MSI-X, and crashes.
    LD_LIBRARY_PATH=$libraries QEMU_MODULE_DIR=$libraries/qemu \
        "$there/usr/bin/qemu-system-x86_64" -L "$there/usr/share/qemu" -L "$there/usr/share/seabios" \
        -nodefaults -no-user-config -display none -no-reboot -M q35 -accel tcg -smp 2 -m 192 \
        -object memory-backend-memfd,id=m,size=192M,share=on -numa node,memdev=m \
        -chardev "socket,id=c,path=$work/guest.sock" -netdev vhost-user,id=n,chardev=c,queues=2 \
        -device virtio-net-pci,netdev=n,packed=on,mrg_rxbuf=on,mq=on,vectors=0,romfile=,mac=02:00:00:00:00:09 \
        -chardev "file,id=s,path=$work/guest.log" -serial chardev:s \
        -kernel "$there"/boot/vmlinuz-* -initrd "$work/initramfs.gz" \
        -append "console=ttyS0 quiet panic=-1 no_timer_check lpj=4000000 clocksource=jiffies" >"$work/qemu.log" 2>&1 </dev/null &
    qemu=$!
}

unpack
program() { find "$there" -path "*bin/$1"; }
busybox=$(program busybox)
mkdir -p "$work/www"
initramfs
head -c 8388608 /dev/urandom >"$work/www/file"
sum=$(sha256sum <"$work/www/file" | cut -d ' ' -f 1)

say "A lab: an emulated host, and a real Linux node with a bridge for the guest"
cat >"$work/interop.yaml" <<END
name: interop
nodes:
  web:
    run:
      - {builtin: httpd, args: [-p, 80, "$work/www"], ready: {tcp: 80}}
  gate: {kind: linux}
links:
  - endpoints: ["web:eth0", "gate:eth0"]
    ipv4: [10.10.0.1/24, 10.10.0.3/24]
END
labctl deploy "$work/interop.yaml"
gate() { labctl exec gate -- "$@"; }
gate nicd --node guest --port "eth0,vhost=$work/guest.sock,mac=02:00:00:00:00:09,queues=2" --wire eth0=tap:vm0,queues=2 \
    >"$work/nicd.log" 2>&1 </dev/null &
nicd=$!
wait_for 20 test -S "$work/guest.sock"
for step in "addr flush dev eth0" "link add br0 type bridge" "link set eth0 master br0" "link set vm0 master br0" \
    "link set br0 up" "link set vm0 up"; do
    # shellcheck disable=SC2086
    gate ip $step
done
# What the guest sends comes to this unmodified program, whose own input never ends: the guest's would with it.
mkfifo "$work/silence"
labctl exec web -- "$busybox" nc -l -p 9000 >"$work/received" 2>"$work/sink.log" <>"$work/silence" &
sink=$!

say "The guest boots"
start_qemu
wait_for 120 guest_said ready
printf 'guest: %s\n' "$(guest kernel)"
printf 'features: %s\n' "$(guest features)"
printf 'queues: %s\n' "$(guest queues)"
[ "$(guest queues)" = "rx-0 rx-1 tx-0 tx-1" ]
[ "$(guest features | cut -c 35)" = 1 ] || { echo "interop: the ring is not packed" >&2; exit 1; }

say "Guest to emulated host"
guest ping
[ "$(guest ping | cut -d ' ' -f 1)" = 0 ]
printf 'fetched %s\nsent    %s\n' "$(guest fetched)" "$sum"
[ "$(guest fetched)" = "$sum" ]
wait_for 60 guest_said uploaded
wait "$sink"
sink=''
printf 'uploaded %s\n' "$(sha256sum <"$work/received")"
cmp "$work/received" "$work/www/file"
labctl stat gate --format json >"$work/stat.json"
counted() { grep -A 1 "\"$1\"" "$work/stat.json" | sed -nE 's/.*"value": ([0-9]+).*/\1/p'; }
printf 'frames to be segmented: %s to the guest, %s from it\n' "$(counted rx_gso_packets)" "$(counted tx_gso_packets)"
[ "$(counted rx_gso_packets)" -gt 0 ]
[ "$(counted tx_gso_packets)" -gt 0 ]

say "Emulated host to guest"
labctl exec web --builtin ping -- -c 3 10.10.0.9
wait_for 30 guest_said done
echo "echoes that the guest answered: $(guest answered)"
[ "$(guest answered)" = 3 ]

say "Guest to emulated host, after its driver was loaded anew"
guest again
[ "$(guest again | cut -d ' ' -f 1)" = 0 ]
wait "$qemu"
qemu=''
if grep WARN "$work/nicd.log"; then exit 1; fi
say "All of it held"
