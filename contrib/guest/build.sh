#!/usr/bin/env bash
# Builds the guests that the tests and the demonstration run, without root and without installing anything but tools:
#   rom.bin            a firmware that is its own guest (rom.S)
#   vmlinuz, initrd    Debian's cloud kernel; busybox, virtio modules and the guest agent in an initramfs (root/)
# Usage: build.sh [OUTDIR]    prints the directory they are in: OUTDIR, or one in the cache named after the recipe.

. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
recipe=$checkout/contrib/guest

build_rom() {
    as --32 -o "$1/rom.o" "$recipe/rom.S"
    ld -m elf_i386 -Ttext 0 --oformat binary -o "$1/rom.bin" "$1/rom.o"
    chmod 644 "$1/rom.bin"
    rm "$1/rom.o"
}

build_linux() {
    local out=$1 work=$2 kernel image
    apt_private "$work/apt" apt-get update >&2
    image=$(apt_private "$work/apt" apt-cache show --no-all-versions linux-image-cloud-amd64 |
        sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
    unpack_packages "$work/apt" "$work/tree" "$image" busybox-static qemu-guest-agent
    kernel=${image#linux-image-}
    mkdir -p "$work/root"/{bin,sbin,usr/sbin,usr/bin,lib,lib64,dev,proc,sys,run,tmp,root}
    cp -r "$recipe/root/." "$work/root"
    add_busybox "$work/tree" "$work/root"
    add_modules "$work/tree" "$work/root" "$kernel"
    add_program "$work/tree/usr/sbin/qemu-ga" "$work/root"
    # not compressed: unpacking it costs an emulated processor 0.3 s
    (cd "$work/root" && find . -mindepth 1 -print0 | sort -z |
        cpio --quiet --null --create --format=newc --owner=0:0 --reproducible) >"$out/initrd"
    install -m 644 "$work/tree/boot/vmlinuz-$kernel" "$out/vmlinuz"
}

add_busybox() {
    local tree=$1 root=$2 applet
    install -m 755 "$tree/bin/busybox" "$root/bin/busybox"
    "$tree/bin/busybox" --list-full | while read -r applet; do
        # what root/ brings itself stays
        [ -e "$root/$applet" ] || { mkdir -p "$root/${applet%/*}" && ln -s /bin/busybox "$root/$applet"; }
    done
}

# add_modules: those named in etc/modules with what they need, less what is built in.
add_modules() {
    local tree=$1 root=$2 kernel=$3 module
    depmod -b "$tree" "$kernel"
    xargs modprobe -d "$tree" -S "$kernel" --show-depends -a <"$root/etc/modules" |
        sed -n "s|^insmod $tree/\([^ ]*\).*|\1|p" | sort -u |
        while read -r module; do install -D -m 644 "$tree/$module" "$root/$module"; done
    install -m 644 "$tree/lib/modules/$kernel"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$kernel"
    depmod -b "$root" "$kernel"
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
    need as=binutils ld=binutils cpio=cpio depmod=kmod
    command -v apt-get >/dev/null || die "the Linux guest is made of Debian's packages, and there is no apt-get to fetch them"
    work=$(mktemp -d)
    trap 'rm -rf "$work" "${partial:-}"' EXIT
    build_rom "$1"
    build_linux "$1" "$work"
}

recipe_hash() { (cd "$recipe" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-12); }

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    build_all "$1"
    (cd "$1" && pwd)
else
    directory=$(cache_directory)/guest-$(recipe_hash)
    if [ ! -d "$directory" ]; then
        say "building the guests"
        partial=$(in_cache .guest-XXXXXX)
        build_all "$partial"
        chmod 755 "$partial"
        mv -T "$partial" "$directory" || [ -d "$directory" ]
    fi
    echo "$directory"
fi
