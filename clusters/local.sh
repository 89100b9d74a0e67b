#!/usr/bin/env bash
# A Ray cluster on this machine alone: a head that runs no tasks, and worker nodes. Ctrl-C stops all of it.
#   clusters/local.sh [WORKERS] [CPUS_EACH]        default: 2 workers that share the CPUs
# It asks for a token, shows its dashboard on the loopback only, and touches no other Ray on this machine.
set -euo pipefail
workers=${1:-2}
cpus=${2:-$((($(nproc) + workers - 1) / workers))}
port=${MASKRAY_LOCAL_PORT:-6399} # not among 10002..19999, the ports of Ray's workers
dashboard=${MASKRAY_LOCAL_DASHBOARD_PORT:-8265}
store=${MASKRAY_LOCAL_OBJECT_STORE_BYTES:-500000000}
command -v ray >/dev/null || { echo "local.sh needs Ray on PATH: activate the environment that maskray is installed in" >&2; exit 2; }
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
[ -n "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ] || ray get-auth-token --generate >/dev/null

folder=$(mktemp -d /tmp/mr-XXXXXX) # short: sockets live below it
nodes=()
stop() {
    trap - EXIT INT TERM
    for node in "${nodes[@]}"; do kill "$node" 2>/dev/null || true; done
    wait || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start() { # NAME OPTION...: a node in the background
    local name=$1
    shift
    # Several nodes share this machine's ports, so each takes free ones.
    ray start --block --object-store-memory="$store" --dashboard-agent-listen-port=0 --min-worker-port=0 \
        --max-worker-port=0 "$@" \
        >"$folder/$name.log" 2>&1 &
    nodes+=($!)
}

alive() { # COUNT: whether so many nodes live
    [ "$(ray list nodes --address "http://127.0.0.1:$dashboard" 2>/dev/null | grep -c ALIVE)" -ge "$1" ]
}
# One after the other: nodes that start at once race for this machine's ports.
for ((number = 0; number <= workers; number++)); do
    if [ "$number" = 0 ]; then
        start head --head --temp-dir="$folder" --port="$port" --dashboard-host=127.0.0.1 \
            --dashboard-port="$dashboard" --num-cpus=0
    else
        start "worker$number" --address="127.0.0.1:$port" --num-cpus="$cpus"
    fi
    until alive $((number + 1)); do
        kill -0 "${nodes[-1]}" 2>/dev/null || { tail -n 5 -- "$folder"/*.log >&2; exit 1; }
        sleep 1
    done
done
echo "a head and $workers workers of $cpus CPUs; commands: maskray submit --address http://127.0.0.1:$dashboard -- ..."
wait -n || true
echo "a node ended; its log:" >&2
tail -n 5 -- "$folder"/*.log >&2
exit 1
