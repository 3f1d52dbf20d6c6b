#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# First program of a lab guest. Loads the modules, then does what the second serial port, or the terminal that
# "lab.port=" on the kernel's command line names, asks, one line each:
#   SECONDS BASE64       run the decoded shell command, killed after SECONDS
# and answers each with one line and the command's output (standard output and error together):
#   done STATUS BYTES
# Before that, once per boot: "ready" and the kernel's id of this boot.
# With "lab.shell" on the kernel's command line it is a shell on the console instead.
export PATH=/bin:/sbin HOME=/

if [ "$1" = commands ]; then
    stty raw -echo
    echo "ready $(cat /proc/sys/kernel/random/boot_id)"
    while read -r seconds command; do
        echo "$command" | base64 -d > /tmp/command
        timeout -s KILL "$seconds" sh /tmp/command > /tmp/output 2>&1 < /dev/null
        echo "done $? $(wc -c < /tmp/output)"
        cat /tmp/output
    done
    exit
fi

/bin/busybox mkdir -p /bin /sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
while read -r module; do
    insmod "/modules/$module.ko" || echo "lab: insmod $module failed"
done < /modules/order

if grep -qw lab.shell /proc/cmdline; then
    setsid cttyhack sh
else
    port=$(sed -n 's/.*lab\.port=\([^ ]*\).*/\1/p' /proc/cmdline)
    port=${port:-/dev/ttyS1}
    while [ ! -e "$port" ]; do sleep 0.1; done
    # In a process of its own: the first one inherits all orphans, and the end of one would cut its "read" short.
    /init commands <> "$port" >&0
    echo "lab: the command port is closed"
fi
poweroff -f
