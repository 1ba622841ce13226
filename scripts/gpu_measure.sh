#!/usr/bin/env bash
# Measures on one GPU in four commands, each under nine minutes: scripts/gpu_measure.sh 1..4 [1..4 ...]
#   1  versions, attention kernels, tests for one GPU without the slow ones; 3 minutes
#   2  every strategy with kill and resume; 5 minutes
#   3  numerics over 200 steps: strategies, offloading, compilation, FP8, low-bit state; 3 minutes
#   4  throughput of 124M and 1B against nanoGPT, Hugging Face and stock Lightning (peers, 4 minutes),
#      ways to compile (modes, 2), kernels alone (fractions, 1); then shakespeare and throughput, for
#      which the command is given again
# Minutes are those of an H200 with 16 processors. 1 to 3 wait for processes to start and may run at the
# same time, with JOBS shared among them: all that compiles and all of 3 took 3.5 minutes together.
# Rows are appended to benchmarks/results/gpu-DATE.jsonl, or in $OUT, each as soon as it is known, and
# what is printed to a log alongside them. A command that was cut off is given again and leaves out
# what is there; an $OUT without rows of the day begins with those of benchmarks/results.
#   MINUTES=8        after which a command is ended; for all of its parts together
#   JOBS=20          tests or runs at a time, in 1 to 3; otherwise five for four cores
#   ONLY=peers,modes the studies of 4
#   WHEELS=DIR       what scripts/gpu_wheels.sh collected; installed once, into a folder of its own
#   NANOGPT=DIR      a checkout of karpathy/nanoGPT; without it, no nanoGPT and no stock Lightning
#   SHAKESPEARE=FILE karpathy/char-rnn's input.txt, for the study shakespeare
#   REHEARSE=1       4 with tiny twins of all shapes
set -euo pipefail
usage() { sed -n '2,22s/^# \{0,1\}//p' "$0"; exit "$1"; }
[[ ${1:-} != --help ]] || usage 0
[[ $# -ge 1 ]] || usage 2 >&2
for part in "$@"; do [[ $part == [1-4] ]] || usage 2 >&2; done
cd "$(dirname "$0")/.."
root=$PWD
PYTHON=${PYTHON:-python3}
begin=$SECONDS
out=${OUT:-benchmarks/results}
mkdir -p "$out"
RESULTS=$(cd "$out" && pwd)/gpu-$(date +%F).jsonl
earlier=benchmarks/results/${RESULTS##*/}
[[ -e $RESULTS || ! -e $earlier ]] || cp "$earlier" "$RESULTS"
export RESULTS PYTHONUNBUFFERED=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
jobs=${JOBS:-$(($(nproc) * 5 / 4))}

if [[ -n ${WHEELS:-} ]]; then
  site=${SITE:-${TMPDIR:-/tmp}/llm_train_site}
  if [[ ! -e $site/.complete ]]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
      --disable-pip-version-check --target "$site" "$WHEELS"/*.whl
    touch "$site/.complete"
  fi
  export PYTHONPATH="$PYTHONPATH:$site"
fi

whole=$(awk "BEGIN {print int(60 * ${MINUTES:-8})}")
seconds_left() { echo $((whole - (SECONDS - begin))); }

# Ends what is still running when the time is over; rows that were written stay.
tests() { # MARKERS
  # Another machine's plugins of pytest warn of things that are not ours.
  TORCHINDUCTOR_COMPILE_THREADS=1 timeout --kill-after=10 "$(seconds_left)" \
    "$PYTHON" -m pytest tests/gpu -q -n "$jobs" --dist worksteal -m "$1" --timeout 300 \
    -o filterwarnings=default -p no:benchmark -p no:cacheprovider -p benchmarks.record_tests \
    --tb=short --no-header
}

studies() { # NAMES
  local minutes
  minutes=$("$PYTHON" -c "print($(seconds_left) / 60)")
  JOBS=$jobs "$PYTHON" -m benchmarks.gpu --only "$1" --minutes "$minutes" --out "$RESULTS" \
    ${NANOGPT:+--nanogpt "$NANOGPT"} ${SHAKESPEARE:+--shakespeare "$SHAKESPEARE"} \
    ${REHEARSE:+--rehearse}
}

measure() { # PARTS
  local part failed=0
  for part in "$@"; do
    echo "== $part, $(seconds_left) s left"
    case $part in
      1)
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
        tests "gpu and not slow" || failed=$?
        ;;
      2) tests "gpu and slow" || failed=$? ;;
      3) studies numerics || failed=$? ;;
      4) studies "${ONLY:-peers,modes,fractions,throughput,shakespeare}" || failed=$? ;;
    esac
  done
  echo "== done after $((SECONDS - begin)) s: $RESULTS"
  return "$failed"
}

measure "$@" 2>&1 | tee -a "${RESULTS%.jsonl}.log"
