# shellcheck shell=bash
# What the scripts that build machines for the tests share: Debian's kernel, an initramfs around busybox, a place in the
# cache. Sourced after lib.sh, never run.

# unpack_kernel STATE TREE PACKAGE...: unpack Debian's kernel for clouds, busybox and further packages below TREE, have
# modprobe find its modules there, and print its version.
unpack_kernel() {
    local state=$1 tree=$2 image
    command -v apt-get >/dev/null || die "this is made of Debian's packages, and there is no apt-get to fetch them"
    apt_private "$state" apt-get update >&2
    image=$(apt_private "$state" apt-cache show --no-all-versions linux-image-cloud-amd64 |
        sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
    unpack_packages "$state" "$tree" "$image" busybox-static "${@:3}"
    depmod -b "$tree" "${image#linux-image-}"
    echo "${image#linux-image-}"
}

add_busybox() {
    local tree=$1 root=$2 applet
    install -D -m 755 "$tree/bin/busybox" "$root/bin/busybox"
    "$tree/bin/busybox" --list-full | while read -r applet; do
        # what the root brings itself stays
        [ -e "$root/$applet" ] || { mkdir -p "$root/${applet%/*}" && ln -s /bin/busybox "$root/$applet"; }
    done
}

# add_modules: those named in etc/modules with what they need, less what is built in.
add_modules() {
    local tree=$1 root=$2 kernel=$3 module
    xargs modprobe -d "$tree" -S "$kernel" --show-depends -a <"$root/etc/modules" |
        sed -n "s|^insmod $tree/\([^ ]*\).*|\1|p" | sort -u |
        while read -r module; do install -D -m 644 "$tree/$module" "$root/$module"; done
    install -m 644 "$tree/lib/modules/$kernel"/modules.{order,builtin,builtin.modinfo} "$root/lib/modules/$kernel"
    depmod -b "$root" "$kernel"
}

# pack_initramfs ROOT: print it, not compressed: unpacking it costs an emulated processor 0.3 s.
pack_initramfs() {
    (cd "$1" && find . -mindepth 1 -print0 | sort -z |
        cpio --quiet --null --create --format=newc --owner=0:0 --reproducible)
}

# build_once NAME RECIPE COMMAND: print the directory in the cache that is named after what is in the directory RECIPE;
# when it is not there, `COMMAND DIRECTORY` fills it.
build_once() {
    local hash directory partial
    hash=$(cd "$2" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-12)
    directory=$(cache_directory)/$1-$hash
    if [ ! -d "$directory" ]; then
        say "building ${directory##*/}"
        partial=$(in_cache ".$1-XXXXXX")
        # shellcheck disable=SC2064  # this very directory, whatever the name means later
        trap "rm -rf '$partial'" EXIT
        "$3" "$partial"
        chmod 755 "$partial"
        mv -T "$partial" "$directory" || [ -d "$directory" ]
    fi
    echo "$directory"
}
