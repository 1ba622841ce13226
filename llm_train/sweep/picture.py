"""The losses of a sweep over one key, coloured by the others."""

import math
from collections.abc import Sequence

import altair as alt
import vl_convert

from llm_train.report.chart import STYLE
from llm_train.sweep.spec import Spec
from llm_train.sweep.trial import TrialResult


def png(spec: Spec, trials: Sequence[TrialResult], title: str) -> bytes:
    """One line for each choice of the other keys, seeds apart; crosses on top diverged."""
    from llm_train.sweep.results import shown

    keys = [key for key in spec.keys if key != "seed"] or list(spec.keys)
    numbers = {key: {t.values[key] for t in trials} for key in keys if _is_number(key, trials)}
    across = max(numbers, key=lambda key: len(numbers[key]), default=keys[0])
    rows = [
        {
            "x": trial.values[across] if across in numbers else shown(trial.values[across]),
            "loss": trial.loss if math.isfinite(trial.loss) else None,
            "others": ", ".join(
                f"{key.rpartition('.')[2]}={shown(trial.values[key])}"
                for key in keys
                if key != across
            ),
        }
        for trial in trials
    ]
    spread = sorted(numbers.get(across, ()))
    log = bool(spread) and spread[0] > 0 and spread[-1] >= 10 * spread[0]
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
    x = alt.X("x:Q", title=across, scale=scale) if spread else alt.X("x:N", title=across)
    base = alt.Chart({"values": rows}).encode(x=x, color=alt.Color("others:N", title=None))
    finite = base.transform_filter("isValid(datum.loss)")
    y = alt.Y("loss:Q", title=spec.metric, scale=alt.Scale(zero=False))
    mean = alt.Y("mean(loss):Q", title=spec.metric, scale=alt.Scale(zero=False))
    lost = base.transform_filter("!isValid(datum.loss)").mark_text(text="\u00d7", fontSize=16)
    layers = [
        finite.mark_line(strokeWidth=1.5).encode(y=mean),
        finite.mark_point(filled=True, size=50).encode(y=y),
        lost.encode(y=alt.value(0)),
    ]
    chart = alt.LayerChart(layer=layers).properties(
        width=640, height=380, title=title, background="white"
    )
    return vl_convert.vegalite_to_png(chart.to_dict(), config=STYLE, scale=1.5)


def _is_number(key: str, trials: Sequence[TrialResult]) -> bool:
    values = [trial.values[key] for trial in trials]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
