#!/bin/busybox sh
# The only process of the guest of interop.sh. What it says on the console begins with "guest: ".
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net; do
    insmod "/m/$module.ko"
done
echo "guest: kernel $(uname -sr)"
echo "guest: features $(cat /sys/bus/virtio/devices/virtio0/features)"
begin() {
    ip link set eth0 up
    ip addr add 10.10.0.9/24 dev eth0
}
begin
echo "guest: queues" $(ls /sys/class/net/eth0/queues)
# The first may be lost: the bridge has only just been told of this port.
until ping -c 1 -W 1 10.10.0.1 >/dev/null; do :; done
ping -c 3 10.10.0.1 >/tmp/ping
echo "guest: ping $? $(grep received /tmp/ping)"
wget -q -O /tmp/file http://10.10.0.1/file
echo "guest: fetched $(sha256sum </tmp/file | cut -d ' ' -f 1)"
echo "guest: ready"
nc 10.10.0.1 9000 </tmp/file
echo "guest: uploaded"
answered() { awk '/^Icmp:/ {line = $0} END {split(line, field); print field[10]}' /proc/net/snmp; }
while [ "$(answered)" -lt 3 ]; do sleep 1; done
echo "guest: answered $(answered)"
# The driver leaves, and comes back: on the same connection the device is reset.
rmmod virtio_net
insmod /m/virtio_net.ko
begin
ping -c 3 10.10.0.1 >/tmp/ping
echo "guest: again $? $(grep received /tmp/ping)"
echo "guest: done"
poweroff -f
