#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What dom0 does once it has its root: brings up Xen's services, then runs pytest with the arguments in
# /lab/arguments, or a shell if there are none. Its status is pytest's, or 70 if it does not get that far.
lost() {
    echo "lab: $*"
    exit 70
}
version=$(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor)
echo "lab: dom0 of Xen $version, Linux $(uname -r), up $(cut -d' ' -f1 /proc/uptime) s"
/bin/busybox hostname dom0
/bin/busybox ip link set lo up
modprobe -a xen-gntdev xen-gntalloc xen-privcmd xen-evtchn xenfs || lost "modules are missing"
mount -t xenfs xenfs /proc/xen || lost "no /proc/xen"
echo 65536 > /sys/module/xen_gntalloc/parameters/limit

programs=/usr/lib/xen-$version/bin
mkdir -p /run/xen /run/xenstored /var/lib/xen /var/lib/xenstored /var/log/xen /etc/xen
echo 'autoballoon="off"' > /etc/xen/xl.conf
"$programs/xenstored" --pid-file /run/xen/xenstored.pid --trace-file /tmp/xenstored.log ||
    lost "xenstored does not start"
"$programs/xen-init-dom0" > /results/xen-init-dom0.log 2>&1 || lost "xen-init-dom0: $(cat /results/xen-init-dom0.log)"
"$programs/xenconsoled" --log=all --log-dir=/results --pid-file=/run/xen/xenconsoled.pid ||
    lost "xenconsoled does not start"
echo "lab: Xen's services are up, $(cut -d' ' -f1 /proc/uptime) s"

export VHOST_XEN=1 VHOST_EXPECT_MEM=xen PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
export PYTHONUNBUFFERED=1 LC_ALL=C.UTF-8 COVERAGE_FILE=/tmp/coverage.part COVERAGE_RCFILE=/lab/dom0-coverage.txt
cd /lab/checkout || lost "no checkout"
if [ -e /lab/arguments ]; then
    eval "set -- $(cat /lab/arguments)"
    coverage run -m pytest "$@" > /results/pytest.log 2>&1 < /dev/null
    status=$?
    cp /tmp/coverage.part.* /tmp/xenstored.log /results/
    echo "lab: pytest ended with $status, $(cut -d' ' -f1 /proc/uptime) s"
    exit "$status"
fi
export PS1='dom0:\w\$ ' TERM=linux
echo "lab: pytest with coverage is 'coverage run -m pytest'; 'exit' ends dom0, control-A X kills it"
setsid --ctty bash --norc -i < /dev/hvc0 > /dev/hvc0 2>&1
exit 0
