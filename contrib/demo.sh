#!/usr/bin/env bash
# Shows what qsup does, with a real VM, on a machine that may have nothing but git and this checkout.
# Usage: contrib/demo.sh [--keep]
#
# Installs what is missing with apt-get (as root or by sudo), makes .venv and builds a tiny Linux guest. Then a private
# daemon (in a temporary directory) supervises the VM of units/hello.toml: each command is printed before it runs.
# Nothing is left of it at the end; --keep leaves daemon and VM running and says how to talk to them.

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

keep=
case ${1:-} in
--keep) keep=yes ;;
"") ;;
*) die "usage: contrib/demo.sh [--keep]" ;;
esac

need python3=python3 python:ensurepip=python3-venv /etc/ssl/certs/ca-certificates.crt=ca-certificates \
    qemu-system-x86_64=qemu-system-x86 setpriv=util-linux curl=curl
python_environment run
guest=$("$checkout/contrib/guest/build.sh")

# not by the entry points in .venv/bin: those name the place that the checkout had when they were made
export PYTHONPATH=$checkout
python=$checkout/.venv/bin/python
qsupctl() { "$python" -m qsup.ctl.main "$@"; }
directory=$(mktemp -d "${TMPDIR:-/tmp}/qsup-XXXXXX")
chmod 755 "$directory"
export QSUP_SOCKET=$directory/run/api.sock
daemon=

# heading TEXT: what comes now.
heading() { if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }

# shown COMMAND...: print a command, then run it.
shown() {
    printf '$ %s\n' "$*"
    "$@"
}

# fails_with STATUS COMMAND...: the same for a command that must end with this status.
fails_with() {
    local expected=$1 status=0
    shift
    shown "$@" 2>&1 || status=$?
    [ "$status" -eq "$expected" ] || die "$* ended with $status, not $expected"
}

# plain: a guest's console without what would steer the terminal.
plain() { sed -u 's/\x1b[^A-Za-z]*[A-Za-z]//g; s/\r//g'; }

# pid_of VM: print the pid of its QEMU.
pid_of() { qsupctl status "$1" | sed -n 's/.*Main PID: \([0-9]*\).*/\1/p'; }

# a session of its own: Ctrl-C is for this script, which then ends the daemon in its own order
start_daemon() {
    setsid "$python" -m qsup.daemon --root "$directory" </dev/null >>"$directory/qsupd.log" 2>&1 &
    daemon=$!
    local deadline=$((SECONDS + 20))
    until qsupctl health >/dev/null 2>&1; do
        if ! kill -0 "$daemon" 2>/dev/null || [ $SECONDS -gt $deadline ]; then
            tail -n 5 "$directory/qsupd.log" >&2
            die "the daemon does not answer"
        fi
        sleep 0.05
    done
}

end_daemon() {
    kill -TERM "$daemon"
    wait "$daemon" || true
    daemon=
}

# clean_up: end everything, whatever state it is in. A daemon that is gone is started again: it finds its VMs.
clean_up() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$keep" ] && [ "$status" -eq 0 ]; then
        return
    fi
    if [ -d "$directory/run/instances" ]; then
        { [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; } || start_daemon
        qsupctl kill --all >/dev/null || status=1
        end_daemon
    fi
    # more than 128: somebody ended it
    [ "$status" -eq 0 ] || [ "$status" -gt 128 ] || { printf '\n' && tail -n 20 "$directory/qsupd.log"; } >&2
    rm -rf "$directory"
    [ "$status" -ne 0 ] || heading "That was all; nothing of it is left."
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir -p "$directory/units/hello.toml.d"
cp "$checkout/units/hello.toml" "$directory/units"
ln -s "$guest" "$directory/hello"
cat >"$directory/units/hello.toml.d/demo.toml" <<UNIT
[service]
restart = "on-failure"
restart-delay = "1s"

[[nic]]
id = "net"
forward = ["$port:80"]
UNIT

heading "A unit file says what should run; a drop-in changes a few keys of it."
shown cat "$directory/units/hello.toml.d/demo.toml"
shown qsupctl verify "$directory/units/hello.toml"

heading "A daemon of its own, with all its files in one directory."
printf '$ qsupd --root %s &\n$ export QSUP_SOCKET=%s\n' "$directory" "$QSUP_SOCKET"
start_daemon
shown qsupctl list

heading "The VM is started; it is ready when its guest agent answers."
shown qsupctl start hello
shown qsupctl list
shown qsupctl status hello

heading "What the guest has written on its serial console since it was switched on; then a command is typed there."
shown qsupctl console --watch --timeout 1s hello </dev/null | plain
printf "\n\$ echo 'free -m' | qsupctl console --timeout 2s hello | tail -n 4\n"
echo 'free -m' | qsupctl console --timeout 2s hello | plain | tail -n 4

printf '\n'
heading "The guest agent answers, and the guest's web server, through the forwarded port."
shown qsupctl agent hello exec -- uname -a
shown qsupctl agent hello addresses
shown curl --silent --show-error --max-time 10 "http://127.0.0.1:$port/"

heading "Paused, resumed; and what QEMU itself says."
shown qsupctl pause hello
shown qsupctl list
shown qsupctl resume hello
shown qsupctl qmp hello query-status

heading "QEMU is killed. That is a failure which nobody ordered, so the VM is started again."
before=$(pid_of hello)
shown kill -KILL "$before"
shown qsupctl wait --for auto-restart --timeout 10s hello
shown qsupctl list
shown qsupctl wait --for running --timeout 60s hello
after=$(pid_of hello)
[ "$after" != "$before" ] || die "pid $before was killed and is still there"
shown qsupctl events --type instance-state --since 0 --timeout 1s hello

heading "The daemon is killed and started again. The VM does not notice."
shown kill -KILL "$daemon"
wait "$daemon" 2>/dev/null || true
printf '$ qsupd --root %s &\n' "$directory"
start_daemon
shown qsupctl list
[ "$(pid_of hello)" = "$after" ] || die "the VM's pid was $after and is $(pid_of hello)"

heading "What cannot work says why, in QEMU's own words."
printf '[qemu]\nextra-args = ["-device", "no-such-device"]\n' >"$directory/units/wrong.toml"
shown cat "$directory/units/wrong.toml"
shown qsupctl reload
fails_with 1 qsupctl start wrong
shown qsupctl logs wrong

heading "The same over HTTP, as other programs see it."
shown curl --silent --show-error --unix-socket "$QSUP_SOCKET" http://localhost/v1/health

printf '\n'
heading "A clean shutdown: the guest agent is asked, the guest powers off."
shown qsupctl stop hello
fails_with 3 qsupctl status hello

[ -n "$keep" ] || exit 0
heading "Left running, as asked."
shown qsupctl start hello
cat <<TEXT

Talk to it:
    export PATH=$checkout/.venv/bin:\$PATH QSUP_SOCKET=$QSUP_SOCKET
    qsupctl status hello
    qsupctl console hello          (Ctrl-] detaches)
    qsupctl help
End it:
    qsupctl stop --all; kill $daemon; rm -r $directory
TEXT
