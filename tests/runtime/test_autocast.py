"""The dtype of products is known without breaking a graph."""

from __future__ import annotations

import torch

from llm_train.runtime.autocast import autocast_dtype


def test_the_question_is_compiled_and_not_asked_in_between() -> None:
    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(autocast_dtype(x))

    compiled = torch.compile(cast, backend="eager", fullgraph=True)
    x = torch.ones(2)
    assert compiled(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16
        assert compiled(x.double()).dtype == torch.float64
    assert autocast_dtype(x.to("meta")) == torch.float32
