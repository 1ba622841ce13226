#!/usr/bin/env bash
# Collects the wheels that a GPU machine without a network lacks: scripts/gpu_wheels.sh DIR [NAME...]
#   scripts/gpu_wheels.sh wheels                     what `scripts/gpu_measure.sh` needs
#   scripts/gpu_wheels.sh wheels wandb datasets      and these
# The machine is taken for one with a CUDA build of torch, lightning, transformers, tokenizers and
# pytest with xdist, on Linux x86_64 with Python 3.12 (FOR=3.13 names another). Versions are those of
# constraints.txt. WHEELS=DIR of gpu_measure.sh installs them into a folder of their own.
set -euo pipefail
usage() { sed -n '2,7s/^# \{0,1\}//p' "$0"; }
[[ ${1:-} != --help ]] || { usage; exit 0; }
[[ $# -ge 1 ]] || { usage >&2; exit 2; }
mkdir -p "$1"
directory=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
# In order: what reads our YAML; DeepSpeed's own needs; FP8 and low-bit optimizer state.
names=(
  jsonargparse docstring_parser typeshed_client importlib_resources ruamel.yaml
  hjson pydantic pydantic_core annotated-types typing-inspection typing_extensions
  torchao
  "$@"
)
platforms=()
for glibc in 2_39 2_38 2_35 2_34 2_31 2_28 2_27 2_24 2_17 2_5; do
  platforms+=(--platform "manylinux_${glibc}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

pinned() { # NAME -> NAME==VERSION, or NAME where constraints.txt does not have it
  local pattern=${1//[-_.]/[-_.]}
  grep -iE "^$pattern==" constraints.txt || echo "$1"
}

# Before the wheel is built: what is there already is not built again.
if ! compgen -G "$directory/deepspeed-*.whl" >/dev/null; then
  # The index has its source only. Without compiled operators the wheel is pure Python.
  DS_BUILD_OPS=0 "$PYTHON" -m pip wheel --quiet --no-deps --no-build-isolation \
    --wheel-dir "$directory" "$(pinned deepspeed)"
fi
for name in "${names[@]}"; do
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
    --python-version "${FOR:-3.12}" "${platforms[@]}" --dest "$directory" "$(pinned "$name")"
done
du -ch "$directory"/*.whl
