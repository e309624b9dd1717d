#!/usr/bin/env bash
# Builds the host that tests boot in an emulator: a Debian of this system's release with systemd, Python and QEMU.
#   root.img           its root file system; whoever boots it keeps what it writes elsewhere
#   vmlinuz, initrd    Debian's cloud kernel; what mounts that file system
# Usage: build.sh      as root; prints the directory they are in, one in the cache named after the recipe.
# qsup is not in it: it comes on a second disk, which is mounted at /opt/qsup. The recipe is all in this directory;
# packages are those of the day on which it is built.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../images.sh"
recipe=$checkout/contrib/host

packages=systemd-sysv,dbus,python3,qemu-system-x86,qemu-utils,iproute2,mount,openssh-server
# nobody reads these there, and they are a fifth of it
unread=(doc man info locale)
# timers do nothing in the minutes that it lives; whoever logs in comes by ssh
idle=(apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
    fstrim.timer systemd-tmpfiles-clean.timer getty.target ssh.service)

build_initramfs() {
    local tree=$1 root=$2 kernel=$3
    cp -r "$recipe/initramfs/." "$root"
    mkdir -p "$root"/{dev,proc,sys,root}
    add_busybox "$tree" "$root"
    add_modules "$tree" "$root" "$kernel"
}

# build_root ROOT: without udev, which costs an emulated machine seconds: devtmpfs makes the nodes, the initramfs loads
# the modules.
build_root() {
    local root=$1 options=() path
    for path in "${unread[@]}"; do options+=("--dpkgopt=path-exclude=/usr/share/$path/*"); done
    mmdebstrap --quiet --mode=root --variant=essential --include="$packages" "${options[@]}" \
        --aptopt='APT::Install-Recommends "false"' "$(debian_release)" "$root" \
        "deb $(debian_mirror) $(debian_release) main"
    cp -rT "$recipe/root" "$root"
    mkdir "$root/opt/qsup"
    sed -i 's/^root:[^:]*:/root::/' "$root/etc/shadow"
    chroot "$root" systemctl --quiet mask "${idle[@]}"
    chroot "$root" systemctl --quiet enable channel.service
    chroot "$root" systemctl --quiet set-default multi-user.target
}

build_all() {
    local work=$1/work kernel
    [ "$EUID" -eq 0 ] || die "files of other users are made: run this as root"
    need mmdebstrap=mmdebstrap mke2fs=e2fsprogs cpio=cpio depmod=kmod
    mkdir "$work" "$work/initramfs"
    kernel=$(unpack_kernel "$work/apt" "$work/tree")
    build_initramfs "$work/tree" "$work/initramfs" "$kernel"
    pack_initramfs "$work/initramfs" >"$1/initrd"
    install -m 644 "$work/tree/boot/vmlinuz-$kernel" "$1/vmlinuz"
    build_root "$work/root" >&2
    mke2fs -q -t ext4 -m 0 -d "$work/root" "$1/root.img" 2G >&2
    rm -r "$work"
}

build_once host "$recipe" build_all
