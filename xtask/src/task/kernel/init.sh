#!/bin/busybox sh
# The first process of the emulated machine. Its arguments are the kernel's name and the tests to run; the second serial
# port takes the result.
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_BACKTRACE=0 EGRESS_BIN=/bin/egress

mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t cgroup2 none /sys/fs/cgroup
mount -t bpf none /sys/fs/bpf
ip link set lo up
# Whoever reads this may not be a terminal.
stty -onlcr

# What is not there is part of the kernel itself.
for module in $(cat /modules/order); do
    file="/modules/$1/$module.ko"
    [ -e "$file.xz" ] && unxz "$file.xz"
    [ -e "$file" ] && insmod "$file"
done
shift

status=0
for test in "$@"; do
    echo "     Running $test on Linux $(uname -r)"
    # FILE, or FILE=NAME,NAME.
    names=${test#"${test%%=*}"}
    xargs -0 "/tests/${test%%=*}" $(echo "${names#=}" | tr , ' ') </arguments || status=1
done
echo "$status" >/dev/ttyS1
poweroff -f
