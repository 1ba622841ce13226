"""The model card of an exported network: what it is, and the numbers of its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_train.exchange.proof import Proof

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [llm-train, pretrained]
---

# {name}

A decoder-only language model, pretrained with llm-train and exported as `{model}`.

| | |
|---|---|
{rows}

`proof.json` compares this folder, opened by transformers {version}, with the network that was
trained, in fp32: logits differ by at most {difference:.2g}, and {equal} of {tokens} greedily chosen
tokens are the same.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH OF THIS FOLDER")
```
"""


def write(folder: Path, name: str, facts: Mapping[str, Any], proof: Proof) -> None:
    """Writes ``README.md``.

    Args:
        folder: exists.
        name: of the run.
        facts: numbers of the run.
        proof: that holds.
    """
    text = _CARD.format(
        name=name,
        model=proof.opened_as,
        rows="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        version=proof.transformers,
        difference=proof.largest_difference,
        equal=proof.greedy_equal,
        tokens=proof.greedy_tokens,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
