#!/usr/bin/env bash
# The quickstart lab, step by step. Ends with status 0 only if every step held.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/target/release:$PATH"
# A state directory of its own: labs that are up stay untouched.
RINGLAB_DIR=$(mktemp -d "${TMPDIR:-/tmp}/ringlab-demo.XXXXXX")
export RINGLAB_DIR

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '$ %s\n' "$*"; "$@"; }

finish() {
    status=$?
    trap - EXIT
    if [ -d "$RINGLAB_DIR" ]; then
        labctl destroy --all >/dev/null 2>&1 || true
        rm -rf "$RINGLAB_DIR"
    fi
    [ $status = 0 ] || echo "demo: FAILED with status $status" >&2
    exit $status
}
trap finish EXIT

say "Deploy: a real Linux namespace, a switch, two emulated hosts"
run labctl deploy topologies/quickstart.yaml
run labctl inspect

say "Real Linux to the emulated host, through TAP"
run labctl exec tester -- ping -c 3 10.10.0.1
page=$(run labctl exec tester -- curl -sSf http://10.10.0.1/)
printf '%s\n' "$page"
grep -q "Hello from an emulated host" <<<"$page"

say "Emulated client to emulated web server: kernel, ring, cable, switch"
page=$(run labctl exec client --builtin fetch -- -f http://web/)
printf '%s\n' "$page"
grep -q "Hello from an emulated host" <<<"$page"

say "What web counted on the way"
run labctl stat web

say "Destroy"
run labctl destroy quickstart
# The agent leaves a moment after its last lab.
for _ in $(seq 100); do
    [ -n "$(find "$RINGLAB_DIR" -mindepth 1 -print -quit)" ] || break
    sleep 0.05
done
if pgrep -af "$RINGLAB_DIR"; then
    echo "demo: processes are left" >&2
    exit 1
fi
left=$(find "$RINGLAB_DIR" -mindepth 1 | head -n 5)
if [ -n "$left" ]; then
    printf 'demo: files are left:\n%s\n' "$left" >&2
    exit 1
fi
echo "Every step held; nothing is left."
