#!/usr/bin/env bash
# Builds the guests that the tests and the demonstration run, without root and without installing anything but tools:
#   rom.bin            a firmware that is its own guest (rom.S)
#   vmlinuz, initrd    Debian's cloud kernel; busybox, virtio modules and the guest agent in an initramfs (root/)
# Usage: build.sh [OUTDIR]    prints the directory they are in: OUTDIR, or one in the cache named after the recipe.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../images.sh"
recipe=$checkout/contrib/guest

build_rom() {
    as --32 -o "$1/rom.o" "$recipe/rom.S"
    ld -m elf_i386 -Ttext 0 --oformat binary -o "$1/rom.bin" "$1/rom.o"
    chmod 644 "$1/rom.bin"
    rm "$1/rom.o"
}

build_linux() {
    local out=$1 work=$2 kernel
    kernel=$(unpack_kernel "$work/apt" "$work/tree" qemu-guest-agent)
    mkdir -p "$work/root"/{bin,sbin,usr/sbin,usr/bin,lib,lib64,dev,proc,sys,run,tmp,root}
    cp -r "$recipe/root/." "$work/root"
    add_busybox "$work/tree" "$work/root"
    add_modules "$work/tree" "$work/root" "$kernel"
    add_program "$work/tree/usr/sbin/qemu-ga" "$work/root"
    pack_initramfs "$work/root" >"$out/initrd"
    install -m 644 "$work/tree/boot/vmlinuz-$kernel" "$out/vmlinuz"
}

# add_program: a program with the libraries it needs; QEMU's own needs hold them all on this system.
add_program() {
    local program=$1 root=$2 library
    install -D -m 755 "$program" "$root/usr/sbin/${program##*/}"
    ldd "$program" | grep -o '/[^ ]*' | while read -r library; do
        install -D -m 755 "$library" "$root$library"
    done
}

build_all() {
    local work=$1/work
    need as=binutils ld=binutils cpio=cpio depmod=kmod
    mkdir "$work"
    build_rom "$1"
    build_linux "$1" "$work"
    rm -r "$work"
}

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    build_all "$1"
    (cd "$1" && pwd)
else
    build_once guest "$recipe" build_all
fi
