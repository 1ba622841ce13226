"""All trials as one table and one picture, the best of them, and how the best rate scales."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

from llm_train.analysis.fits import best_rate, power_law
from llm_train.runtime import yaml12
from llm_train.runtime.structure import nested
from llm_train.sweep.spec import Spec, Values
from llm_train.sweep.trial import TrialResult

_COLUMNS = ("loss", "tokens", "tokens_per_s", "peak_gib", "why")


def write(out: Path, spec: Spec, trials: Sequence[TrialResult]) -> dict[str, str]:
    """Writes table, picture and the overlay of the best; returns what to say of them."""
    trials = sorted(trials, key=lambda trial: (bool(trial.why), trial.loss))
    ended = [trial for trial in trials if not trial.why]
    with open(out / "table.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*spec.keys, *_COLUMNS])
        for trial in trials:
            own = [shown(trial.values[key]) for key in spec.keys]
            rows.writerow([*own, *(getattr(trial, name) for name in _COLUMNS)])
    said = {"table": str(out / "table.csv")}
    if ended and find_spec("altair") is not None and find_spec("vl_convert") is not None:
        from llm_train.sweep.picture import png

        (out / "sweep.png").write_bytes(png(spec, ended, out.name))
        said["picture"] = str(out / "sweep.png")
    best = _best(trials)
    if best is None:
        return said
    values, loss, count = best
    said["best"] = f"{spec.metric} {loss:.4f}" + (
        f", the mean of {count} seeds" if count > 1 else ""
    )
    said |= {f"  {key}": shown(value) for key, value in values.items()}
    if spec.fit:
        values = {**values, **_fitted(spec, ended, said)}
    (out / "best.yaml").write_text(yaml12.dump(nested(values)), encoding="utf-8")
    said["as an overlay"] = str(out / "best.yaml")
    return said


def shown(value: object) -> str:
    """A value in a cell: the name of a class instead of its arguments.

    >>> shown({"class_path": "AdamW", "init_args": {"learning_rate": 1e-3}})
    'AdamW(learning_rate=0.001)'
    """
    if not isinstance(value, dict) or "class_path" not in value:
        return value if isinstance(value, str) else json.dumps(value)
    arguments = ", ".join(f"{k}={shown(v)}" for k, v in value.get("init_args", {}).items())
    return f"{value['class_path'].rpartition('.')[2]}({arguments})"


def _best(trials: Sequence[TrialResult]) -> tuple[Values, float, int] | None:
    """Of values without their seed, with the mean of the loss over seeds, of which all count."""
    groups: dict[str, list[TrialResult]] = defaultdict(list)
    for trial in trials:
        values = {key: value for key, value in trial.values.items() if key != "seed"}
        groups[json.dumps(values, sort_keys=True)].append(trial)
    means = {
        key: fmean(trial.loss for trial in group)
        for key, group in groups.items()
        if not any(trial.why for trial in group)
    }
    key = min(means, key=lambda key: means[key], default="")
    if not key or math.isinf(means[key]):
        return None
    return json.loads(key), means[key], len(groups[key])


def _fitted(spec: Spec, trials: Sequence[TrialResult], said: dict[str, str]) -> Values:
    """The rate at ``fit.at`` by the power law through the best rates; says how sure that is."""
    rate, against, at = spec.fit["rate"], spec.fit["against"], spec.fit["at"]
    groups: dict[float, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        groups[trial.values[against]][trial.values[rate]].append(trial.loss)
    found = {}
    for number, losses in sorted(groups.items()):
        best = best_rate(list(losses), [fmean(tried) for tried in losses.values()])
        said[f"best {rate} at {against}={number}"] = (
            "at the edge" if best is None else f"{best:.4g}"
        )
        if best is not None:
            found[number] = best
    if len(found) < 2:
        said["fit"] = "needs best rates inside what was tried, at two values or more"
        return {}
    law = power_law(list(found), list(found.values()))
    said["fit"] = f"{against}^({law.exponent:.3f} +- {law.error:.3f}), {law(at):.4g} at {at}"
    return {rate: float(f"{law(at):.4g}"), against: at}
