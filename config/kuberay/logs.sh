#!/bin/sh
# What all pods of Ray have logged of one execution, in the order of time:
#   config/kuberay/logs.sh exec_… [NAMESPACE]
# Each pod looks into its own files (python -m serve_app.logs). Of pods that are gone there is nothing.
set -eu
execution=${1:?which execution?}
namespace=${2:-earth2serve}

found=$(
    # Ray's container is the first one of each.
    kubectl -n "$namespace" get pods -l ray.io/is-ray-node=yes -o \
        jsonpath='{range .items[*]}{.metadata.name}{" "}{.spec.containers[0].name}{"\n"}{end}' |
        while read -r pod container; do
            # It says by itself where there is nothing, and that is no failure yet.
            kubectl -n "$namespace" exec "$pod" -c "$container" -- \
                python -m serve_app.logs "$execution" </dev/null || true
        done |
        # A line of a traceback has no time of its own: it stays with the one before.
        awk '/^[0-9]+-[0-9]+-[0-9]+ [0-9:,]+ / { time = $1 " " $2 } { print time "\t" $0 }' |
        LC_ALL=C sort -s -t "$(printf '\t')" -k 1,1 |
        cut -f 2-
)
[ -n "$found" ] || { echo "no pod of $namespace has a line of $execution" >&2; exit 1; }
printf '%s\n' "$found"
