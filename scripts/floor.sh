#!/usr/bin/env bash
# The default suite on the oldest torch that pyproject.toml admits: scripts/floor.sh [PYTEST_ARGUMENT...]
# Makes an environment of its own, .venv-floor, with that torch and the other versions of
# constraints.txt. torch's build for CUDA takes gigabytes, so nothing runs this by itself.
# FLOOR_PYTHON names an interpreter that has everything already.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0; }
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false CUDA_VISIBLE_DEVICES=
floor=$(sed -n 's/^  "torch>=\([0-9.]*\)",$/\1/p' pyproject.toml)
folder=.venv-floor
python=${FLOOR_PYTHON:-$folder/bin/python}
if [[ -z ${FLOOR_PYTHON:-} ]] && ! cmp --silent "$folder/installed" <(cat pyproject.toml constraints.txt); then
  [[ -x $python ]] || "${PYTHON:-python3}" -m venv "$folder"
  grep -v '^torch==' constraints.txt > "$folder/constraints.txt"
  "$python" -m pip install --quiet -c "$folder/constraints.txt" "torch==$floor.*" -e '.[dev]'
  cat pyproject.toml constraints.txt > "$folder/installed"
fi
"$python" -c 'import sys, torch; print("python", sys.version.split()[0], "torch", torch.__version__)'
"$python" -m pytest "$@"
