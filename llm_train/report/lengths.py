"""How long documents are, as one picture.

Lengths span many powers of ten, so that a bar stands for a factor of two, and the bars show the
tokens in documents of such a length: a few long documents may be most of a corpus.
"""

from collections.abc import Mapping

import altair as alt
import numpy as np
import numpy.typing as npt
import vl_convert

from llm_train.report.chart import STYLE


def png(title: str, lengths: Mapping[str, npt.NDArray[np.int64]]) -> bytes:
    """One panel for each split.

    Args:
        title: above all.
        lengths: tokens of each document, by split.
    """
    panels = [_panel(name, each) for name, each in lengths.items() if each.size]
    whole = alt.vconcat(*panels, title=title, background="white")
    return vl_convert.vegalite_to_png(whole.to_dict(), config=STYLE, scale=1.5)


def _panel(name: str, lengths: npt.NDArray[np.int64]) -> alt.Chart:
    powers = np.log2(np.maximum(lengths, 1)).astype(int)
    documents = np.bincount(powers)
    tokens = np.bincount(powers, weights=lengths) / lengths.sum()
    values = [
        {"length": f"{1 << power:,}", "documents": int(count), "tokens": float(part)}
        for power, (count, part) in enumerate(zip(documents, tokens, strict=True))
    ]
    bars = alt.Chart({"values": values}, title=name, width=640, height=180).mark_bar()
    panel: alt.Chart = bars.encode(
        x=alt.X("length:N", sort=None, title="tokens of the document, from here to twice as many"),
        y=alt.Y("tokens:Q", title="part of all tokens", axis=alt.Axis(format="%")),
        tooltip=["documents:Q"],
    )
    return panel
