#!/usr/bin/env bash
# Runs every test, real QEMU included, on a machine that may have nothing but git and this checkout.
# Usage: contrib/test.sh [--unprivileged] [PYTEST-ARGUMENT...]
#
# Installs what is missing with apt-get (as root or by sudo), makes .venv, fetches a second QEMU, builds the guests and
# the host of several nodes, none of which is installed. Then all tests run as root, those marked `hosted` by themselves
# after the others, and those marked `user` once more as an ordinary user: the one who calls this, or nobody when that is
# root. --unprivileged runs only the latter.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

privileged=yes
if [ "${1:-}" = --unprivileged ]; then
    privileged=
    shift
fi
[ -z "$privileged" ] || may_be_root ||
    die "the tests need root, for taps, cgroups and other uids: run this as root or with sudo, or with --unprivileged"

need python3=python3 python:ensurepip=python3-venv /etc/ssl/certs/ca-certificates.crt=ca-certificates \
    qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils /usr/share/OVMF/OVMF_CODE.fd=ovmf \
    ip=iproute2 setpriv=util-linux mount=mount strace=strace shellcheck=shellcheck \
    systemd-analyze=systemd systemd-socket-activate=systemd systemd-nspawn=systemd-container \
    dbus-daemon=dbus /usr/lib/systemd/user/dbus.socket=dbus-user-session mmdebstrap=mmdebstrap mke2fs=e2fsprogs ssh=openssh-client
python_environment dev
cache=$(cache_directory)
newer_qemu >/dev/null
"$checkout/contrib/guest/build.sh" >/dev/null
[ -z "$privileged" ] || as_root env QSUP_TEST_CACHE="$cache" "$checkout/contrib/host/build.sh" >/dev/null

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
closing=()
failed=0

# run_pytest WHO DIRECTORY WORKERS LAUNCHER...: run pytest by a command that executes its arguments, for 75 minutes at most.
# What tools cache goes to DIRECTORY, not into a checkout that may be another user's. That none of the tests that were
# asked for is among these (5) is no failure.
run_pytest() {
    local who=$1 directory=$2 workers=$3 status=0
    shift 3
    say "running the tests: $who"
    "$@" env QSUP_TEST_CACHE="$cache" PATH="$PATH" PYTHONPYCACHEPREFIX="$directory/python" \
        RUFF_CACHE_DIR="$directory/ruff" MYPY_CACHE_DIR="$directory/mypy" \
        HYPOTHESIS_STORAGE_DIRECTORY="$directory/hypothesis" \
        timeout --foreground --kill-after=30 4500 .venv/bin/python -m pytest -o cache_dir="$directory/pytest" \
        --numprocesses="$workers" --dist=worksteal "${arguments[@]}" 2>&1 |
        tee "$scratch/$who.log" || status=${PIPESTATUS[0]}
    closing+=("$(printf '%6s: %s' "$who" "$(tail -n 1 "$scratch/$who.log")")")
    [ "$status" -eq 0 ] || { [ "$status" -eq 5 ] && [ "$asked" -gt 0 ]; } || failed=1
}

cd "$checkout"
asked=$#
workers=$(($(nproc) + 1)) # one more: much of what they do is waiting
if [ -n "$privileged" ]; then
    launcher=(env)
    [ "$EUID" -eq 0 ] || launcher=(sudo --)
    arguments=("$@" -m "not hosted")
    run_pytest root "$cache/tools-0" "$workers" "${launcher[@]}"
    # these have one emulated host together, which takes all processors; what failed there is tried once more, on another
    arguments=("$@" -m hosted)
    before=$failed
    run_pytest hosted "$cache/tools-0" 0 "${launcher[@]}"
    if [ "$failed" -gt "$before" ]; then
        failed=$before
        arguments+=(--last-failed --last-failed-no-failures=none)
        run_pytest 'hosted, once more' "$cache/tools-0" 0 "${launcher[@]}"
    fi
fi

arguments=("$@" -m user)
if [ "$EUID" -eq 0 ]; then
    # nobody sees the checkout at a place that is open to all, wherever it is
    home=$scratch/home
    place=$scratch/checkout
    install -d -o nobody -g nogroup -m 700 "$home" "$home/run" "$cache/tools-nobody"
    mkdir "$place"
    # shellcheck disable=SC2016  # the inner shell expands them
    run_pytest nobody "$cache/tools-nobody" "$workers" \
        unshare --mount --propagation private sh -ec 'mount --bind "$1" "$2"; cd "$2"; shift 2; exec "$@"' \
        sh "$checkout" "$place" \
        setpriv --reuid nobody --regid nogroup --clear-groups --inh-caps=-all --bounding-set=-all \
        env -i USER=nobody LOGNAME=nobody HOME="$home" XDG_RUNTIME_DIR="$home/run" PYTHONPATH="$place" LANG=C.UTF-8
else
    run_pytest "$(id -un)" "$cache/tools-$EUID" "$workers" env
fi

printf '\n'
printf '%s\n' "${closing[@]}"
exit "$failed"
