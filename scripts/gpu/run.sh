#!/usr/bin/env bash
# Run one phase of the GPU kit on a bare machine: unpack, check, bench, suite or paper.
#
#   scripts/gpu/run.sh PHASE [--cpu-smoke] [--limit-s SECONDS]
#
# Pieces of KIT (.gpu/) that are new are unpacked into GPU_HOME first. PHASE.json and PHASE.log go to OUT; the last line
# on the terminal is JSON. --cpu-smoke: the same code with tiny models, without a GPU. PYTHON: 3.12, with torch.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
phase=${1:-}
case $phase in
  unpack | check | bench | suite | paper) ;;
  *)
    echo "usage: $0 unpack|check|bench|suite|paper [--cpu-smoke] [--limit-s SECONDS]" >&2
    exit 2
    ;;
esac
export GPU_HOME=${GPU_HOME:-/tmp/l2g-gpu}
export KIT=${KIT:-$root/.gpu}
export OUT=${OUT:-$GPU_HOME/out}
python=$(command -v "${PYTHON:-python3}")
mkdir -p "$GPU_HOME/bin" "$GPU_HOME/home" "$OUT"

export PYTHONPATH=$root:$GPU_HOME/site
export PATH=$GPU_HOME/bin:$PATH
[ -w "${HOME:-/nonexistent}" ] || export HOME=$GPU_HOME/home
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export MLFLOW_DISABLE_TELEMETRY=true L2G_RAY_CACHE_DIR=$GPU_HOME/cache
# A local Ray of this user's, without its web pages or reports.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled
unset RAY_ADDRESS MLFLOW_TRACKING_URI MLFLOW_EXPERIMENT_NAME

# The checkout is not installed there.
cat >"$GPU_HOME/bin/l2g-ray" <<EOF
#!/bin/sh
exec "$python" -m l2g_ray.cli.main "\$@"
EOF
chmod +x "$GPU_HOME/bin/l2g-ray"

if [ "$phase" != unpack ] && compgen -G "$KIT/[0-9]*" >/dev/null; then
  "$python" "$root/scripts/gpu/pieces.py" unpack "$KIT" "$GPU_HOME" >"$OUT/unpack.log" 2>&1 || tail -5 "$OUT/unpack.log"
fi
rc=0
"$python" "$root/scripts/gpu/phase.py" "$@" || rc=$?
# phase.py ends with its line, and with 0 or 1.
[ "$rc" -le 1 ] || printf '{"phase": "%s", "rc": %d, "found": null}\n' "$phase" "$rc"
exit "$rc"
