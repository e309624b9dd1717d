# shellcheck shell=bash
# What the scripts in contrib/ share: messages, packages, the Python environment, the cache, other QEMUs.
# Sourced, never run; everything here may be called again and does only what is missing.

set -euo pipefail
umask 022
PATH=$PATH:/usr/sbin:/sbin # where Debian keeps ip, depmod and modprobe, which an ordinary user's PATH leaves out

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# may_be_root: whether as_root can work.
may_be_root() { [ "$EUID" -eq 0 ] || sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null; }; }

# as_root COMMAND...: run it as root, by sudo where we are not.
as_root() {
    if [ "$EUID" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "root is needed for: $* (run as root, or install sudo)"
    fi
}

# need THING=PACKAGE...: have each thing there, by installing Debian's package when it is not. A thing is a command, a
# file (with a slash) or a module of the system's Python (python:NAME).
need() {
    local entry missing=()
    for entry; do
        # a package is asked for once, however much of it is missing
        [[ " ${missing[*]} " == *" ${entry##*=} "* ]] || present "${entry%%=*}" || missing+=("${entry##*=}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "missing: ${missing[*]} (Debian's names), and there is no apt-get: install them by this system's own means"
    say "installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null
    for entry; do
        present "${entry%%=*}" || die "${entry##*=} is installed and yet ${entry%%=*} is not there"
    done
}

present() {
    case $1 in
    python:*) python_of_system >/dev/null && "$(python_of_system)" -c "import ${1#python:}" 2>/dev/null ;;
    */*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

# cache_directory: print where downloads and built guests are kept; any uid can reach what is in it, QEMU's among them.
cache_directory() {
    local directory=${QSUP_TEST_CACHE:-/var/cache/qsup-test}
    if [ -z "${QSUP_TEST_CACHE:-}" ] && [ ! -d "$directory" ] && ! may_be_root; then
        directory=${XDG_CACHE_HOME:-$HOME/.cache}/qsup-test
    fi
    if [ ! -d "$directory" ]; then
        mkdir -p "$directory" 2>/dev/null || as_root install -d -o "$EUID" "$directory"
    fi
    # what tests of whichever user take turns by
    [ -d "$directory/locks/machine" ] || mkdir -p "$directory"/locks/{turn,machine} 2>/dev/null ||
        as_root mkdir -p "$directory"/locks/{turn,machine}
    echo "$directory"
}

# in_cache TEMPLATE: make a directory in the cache for what is yet unfinished, and print it.
in_cache() {
    local cache
    cache=$(cache_directory)
    [ -w "$cache" ] || as_root chown "$EUID" "$cache"
    mktemp -d "$cache/$1"
}

# Python

# python_of_system: print a Python of at least 3.11, Debian's own first: other users can run it.
python_of_system() {
    local python
    for python in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    return 1
}

# python_environment dev|run: have .venv hold the project, with its development tools or without; pip runs only when
# what pyproject.toml asks for has changed.
python_environment() {
    local kind=$1 venv=$checkout/.venv which='import sys; print(sys.base_prefix, sys.version_info)' python wanted
    python_of_system >/dev/null || need python3=python3
    python=$(python_of_system) || die "qsup needs Python 3.11 or newer; this system has $(python3 --version)"
    wanted=$("$python" - "$checkout/pyproject.toml" <<'PYTHON'
import hashlib, json, sys, tomllib
with open(sys.argv[1], "rb") as file:
    described = tomllib.load(file)
asked = [described.get(table) for table in ("build-system", "project", "dependency-groups")]
print(hashlib.sha256(json.dumps([asked, sys.version_info[:2]]).encode()).hexdigest())
PYTHON
    )
    if has_stamp "$venv" dev "$wanted" || has_stamp "$venv" "$kind" "$wanted"; then
        return
    fi
    if [ "$("$venv/bin/python" -c "$which" 2>/dev/null)" != "$("$python" -c "$which")" ]; then
        need python:ensurepip=python3-venv
        say "making the Python environment $venv"
        "$python" -m venv --clear "$venv"
    fi
    say "installing qsup and what it needs into $venv"
    # dependency groups came with pip 25.1, Debian 12 has 23.0
    "$venv/bin/python" -m pip install -q --disable-pip-version-check 'pip>=25.1'
    if [ "$kind" = dev ]; then
        "$venv/bin/python" -m pip install -q -e "$checkout" --group "$checkout/pyproject.toml:dev"
    else
        "$venv/bin/python" -m pip install -q -e "$checkout"
    fi
    echo "$wanted" >"$venv/.qsup-$kind"
}

has_stamp() { [ -x "$1/bin/python" ] && [ "$(cat "$1/.qsup-$2" 2>/dev/null)" = "$3" ]; }

# Packages that are unpacked, not installed

# debian_mirror: print the address of the archive this system installs from.
debian_mirror() {
    # shellcheck disable=SC2016  # apt expands them
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v release="$(debian_release)" '$1 == release && !done { print $2; done = 1 }'
}

debian_release() { (. /etc/os-release && echo "${VERSION_CODENAME:?}"); }

# apt_private STATE COMMAND...: apt with a state directory of its own, so that no root and no installed list is needed.
# STATE/sources.list, where it exists, replaces the system's sources.
apt_private() {
    local state=$1 sources=()
    shift
    mkdir -p "$state"/{lists,archives}/partial
    [ ! -e "$state/sources.list" ] || sources=(-o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=-)
    command "$1" -q "${sources[@]}" -o Dir::State="$state" -o Dir::State::lists="$state/lists" \
        -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$state" -o Dir::Cache::archives="$state/archives" \
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Acquire::Retries=3 -o Acquire::http::Timeout=20 "${@:2}"
}

# unpack_packages STATE DIRECTORY PACKAGE...: fetch packages and unpack them below DIRECTORY.
unpack_packages() {
    local state=$1 directory=$2 package
    shift 2
    mkdir -p "$state/debs" "$directory"
    (cd "$state/debs" && apt_private "$state" apt-get download "$@" >&2) || return
    for package in "$state"/debs/*.deb; do
        dpkg-deb -x "$package" "$directory" || return
        rm "$package"
    done
}

# newer_qemu: have the QEMU of the release's backports beside the installed one and print its directory, nothing when it
# cannot be had (the message says why).
newer_qemu() {
    local release directory work
    release=$(debian_release)
    directory=$(cache_directory)/qemu-$release-backports
    if [ ! -d "$directory" ]; then
        say "fetching the QEMU of $release-backports"
        work=$(in_cache .fetch-XXXXXX)
        if fetch_newer_qemu "$release" "$work" >&2; then
            chmod 755 "$work/tree"
            mv -T "$work/tree" "$directory" || [ -d "$directory" ]
        fi
        rm -rf "$work"
    fi
    [ ! -d "$directory" ] || echo "$directory"
}

fetch_newer_qemu() {
    local release=$1 work=$2 mirror
    mirror=$(debian_mirror)
    if [ -z "$mirror" ]; then
        say "no second QEMU: this system's apt names no archive of $release"
        return 1
    fi
    mkdir -p "$work/state"
    echo "deb $mirror $release-backports main" >"$work/state/sources.list"
    if ! apt_private "$work/state" apt-get update || ! unpack_packages "$work/state" "$work/tree" \
        qemu-system-x86 qemu-system-common qemu-system-data qemu-utils qemu-block-extra seabios \
        qemu-system-modules-opengl qemu-system-modules-spice; then
        say "no second QEMU: $release-backports cannot be reached at $mirror, or holds none"
        return 1
    fi
    # it looks for data beside itself; what it shares with the installed one (network boot ROMs) is not in its packages
    mkdir -p "$work/tree/usr/lib"
    ln -sfn /usr/lib/ipxe "$work/tree/usr/lib/ipxe"
    # but for modules: those of the installed one, which it would find, make it abort
    mv "$work/tree/usr/bin/qemu-system-x86_64" "$work/tree/usr/bin/qemu-system-x86_64.real"
    cat >"$work/tree/usr/bin/qemu-system-x86_64" <<'WRAPPER'
#!/bin/sh
export QEMU_MODULE_DIR="${0%/bin/*}/lib/x86_64-linux-gnu/qemu"
exec "${0%/*}/qemu-system-x86_64.real" "$@"
WRAPPER
    chmod 755 "$work/tree/usr/bin/qemu-system-x86_64"
    if ! "$work/tree/usr/bin/qemu-system-x86_64" --version; then
        say "no second QEMU: the one of $release-backports does not run here"
        return 1
    fi
}
