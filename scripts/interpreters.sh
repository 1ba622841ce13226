#!/usr/bin/env bash
# On each further Python that this machine has: install the package, import it, train three steps.
#   scripts/interpreters.sh [VERSION...]      (3.11 3.12 3.13, but not that of .venv)
# One environment each, .venv-VERSION, brought up to date when pyproject.toml or constraints.txt
# changed. A version that is absent is said to be so and passes. So does one whose installation takes
# longer than INSTALL_SECONDS (300): that tells of the network, and nothing of the package.
set -euo pipefail
[[ ${1:-} != --help ]] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 0; }
cd "$(dirname "$0")/.."
INSTALL_SECONDS=${INSTALL_SECONDS:-300}
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

version_of() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true
}

# Prints the first interpreter of this version that runs; a shim of pyenv may exist and not run.
find_python() {
  local candidate
  for candidate in "$(command -v "python$1" || true)" "$HOME/.pyenv/versions/$1".*/bin/"python$1"; do
    if [[ $(version_of "$candidate") == "$1" ]]; then
      echo "$candidate"
      return
    fi
  done
}

install() {
  local python=$1 folder=$2
  if cmp --silent "$folder/installed" <(cat pyproject.toml constraints.txt); then return; fi
  # "&&" throughout: where a caller asks for the status, bash does not stop at a failure by itself.
  { [[ -x $folder/bin/python ]] || "$python" -m venv "$folder"; } &&
    timeout "$INSTALL_SECONDS" "$folder/bin/python" -m pip install --quiet -c constraints.txt -e . &&
    cat pyproject.toml constraints.txt > "$folder/installed"
}

# Prints the versions that ran and the last loss.
train() {
  "$1" - "$2" << 'END'
import contextlib, io, json, platform, sys
from pathlib import Path

import torch

import llm_train
from llm_train.cli import main
from llm_train.testing.configs import tiny, write

folder = Path(sys.argv[1])
file = write(folder / "tiny.yaml", tiny(folder / "run", steps=3))
said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    try:
        main(["fit", "-c", str(file)])
    except SystemExit as end:
        assert end.code == 0, said.getvalue()
records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
loss = [record["train/loss"] for record in records if "train/loss" in record][-1]
versions = f"llm_train {llm_train.__version__}, torch {torch.__version__}"
print(f"python {platform.python_version()}: {versions}, loss {loss:.4f} after 3 steps")
END
}

[[ $# -gt 0 ]] || set -- 3.11 3.12 3.13
for version in "$@"; do
  [[ $(version_of .venv/bin/python) != "$version" ]] || continue
  folder=.venv-$version
  python=$(find_python "$version")
  if [[ -z $python ]]; then
    echo "python $version: not on this machine"
    continue
  fi
  status=0
  install "$python" "$folder" || status=$?
  if [[ $status -eq 124 ]]; then
    echo "python $version: not installed within $INSTALL_SECONDS s"
    continue
  fi
  [[ $status -eq 0 ]] || exit "$status"
  scratch=$(mktemp -d)
  train "$folder/bin/python" "$scratch"
  rm -rf "$scratch"
done
