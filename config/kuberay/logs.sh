#!/bin/sh
# Print the log lines of one execution from all pods of Ray, in order of time:
#   config/kuberay/logs.sh exec_… [NAMESPACE]
# Each pod reads its own files (python -m serve_app.logs). Logs of deleted pods are lost.
set -eu
execution=${1:?which execution?}
namespace=${2:-earth2serve}

found=$(
    # Ray's container is the first of each pod.
    kubectl -n "$namespace" get pods -l ray.io/is-ray-node=yes -o \
        jsonpath='{range .items[*]}{.metadata.name}{" "}{.spec.containers[0].name}{"\n"}{end}' |
        while read -r pod container; do
            # A pod without lines reports that, which is not an error.
            kubectl -n "$namespace" exec "$pod" -c "$container" -- \
                python -m serve_app.logs "$execution" </dev/null || true
        done |
        # A line of a traceback has no time: it stays with the previous line.
        awk '/^[0-9]+-[0-9]+-[0-9]+ [0-9:,]+ / { time = $1 " " $2 } { print time "\t" $0 }' |
        LC_ALL=C sort -s -t "$(printf '\t')" -k 1,1 |
        cut -f 2-
)
[ -n "$found" ] || { echo "no pod of $namespace has a line of $execution" >&2; exit 1; }
printf '%s\n' "$found"
