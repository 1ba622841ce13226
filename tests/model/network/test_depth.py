"""What texts say about the placement of norms, at initialisation and by depth."""

from __future__ import annotations

import pytest

from benchmarks.depth import DEPTHS, gradient_norms, squared_norm


def test_gradients_by_depth_at_initialisation():
    norms = {
        place: [gradient_norms(place, layers) for layers in DEPTHS]
        for place in ("pre", "post", "deepnorm")
    }
    shallow, _, deep = norms["post"]  # the last layer's do not shrink with depth, the first's do
    assert deep[-1] == pytest.approx(shallow[-1], rel=0.4)
    assert deep[-1] / deep[0] > 4 > 1 > shallow[-1] / shallow[0]
    for few, many in zip(norms["pre"], norms["pre"][1:], strict=False):  # four times as many layers
        assert few[-1] / many[-1] == pytest.approx(2.0, rel=0.15)
    for each in norms["deepnorm"]:  # all layers alike
        assert max(each) / min(each) < 1.2
    for few, many in zip(norms["deepnorm"], norms["deepnorm"][1:], strict=False):
        assert few[-1] / many[-1] == pytest.approx(2.0, rel=0.05)


def test_what_an_update_changes_is_bounded_with_deepnorm_alone():
    deepnorm, post = (
        [squared_norm(place, layers) for layers in DEPTHS] for place in ("deepnorm", "post")
    )
    assert max(deepnorm) / min(deepnorm) < 1.1
    assert post[2] > 2 * post[1] > 4 * post[0]
