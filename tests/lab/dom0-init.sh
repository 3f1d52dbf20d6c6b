#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# First program of dom0: puts the root together from the folders that QEMU shares (9p), runs dom0.sh there, and
# ends the machine in a way that can be told from a crash: the status is in /results/status, and QEMU exits with 85.
/bin/busybox mkdir -p /bin /sbin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /upper /layers /new
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module.ko" || echo "lab: insmod $module failed"
done < /modules/order

share() { # TAG FOLDER OPTIONS
    mkdir -p "$2"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2" || echo "lab: no share $1"
}
# The first of the layers hides the others.
for layer in own tests root; do
    share "$layer" "/layers/$layer" ro,cache=loose
    lower="$lower:/layers/$layer"
done
mount -t tmpfs -o size=50% tmpfs /upper
mkdir /upper/files /upper/work
mount -t overlay -o "lowerdir=${lower#:},upperdir=/upper/files,workdir=/upper/work" overlay /new ||
    echo "lab: no root"
share modules /new/usr/lib/modules ro,cache=loose
share lab /new/lab ro,cache=loose
share results /new/results rw,cache=none
for folder in proc sys dev; do
    mount -o move "/$folder" "/new/$folder"
done
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts devpts /new/dev/pts
for folder in dev/shm run tmp; do
    mount -t tmpfs tmpfs "/new/$folder"
done
ln -s /proc/self/fd /new/dev/fd

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root /bin/busybox chroot /new /bin/bash /lab/dom0.sh
echo $? > /new/results/status
# The device isa-debug-exit at port 0xf4: QEMU's status is twice the value, plus one.
printf '\052' | dd of=/new/dev/port bs=1 seek=244 conv=notrunc 2> /dev/null
/bin/busybox poweroff -f
