"""Texts that are continued together get the tokens that each gets alone."""

from dataclasses import replace

import pytest
import torch

from llm_train.model.network import Transformer, generate, initialise
from llm_train.model.network.sample import RaggedBatch, RaggedText, chooser

NETWORK = Transformer(
    vocab_size=31, pad_vocab_to=8, layers=2, width=16, heads=4, max_sequence=24, init_std=0.5
)


@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_texts_that_come_and_go_equal_texts_alone(positions: str) -> None:
    """Prompts of 1 to 34 tokens and texts beyond the context of 24, of which two join at a time."""
    network = replace(NETWORK, positions=positions, kv_heads=2).build()
    initialise(network, 5)
    random = torch.Generator().manual_seed(3)
    batch, texts, rows = RaggedBatch(network), {}, {}
    for step in range(40):
        if step % 6 == 0:
            for seed in (step, step + 1):
                length, most = (int(torch.randint(1, 35, (1,), generator=random)) for _ in "ab")
                prompt = torch.randint(31, (length,), generator=random)
                how = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": seed}
                row = RaggedText(prompt.tolist(), chooser(**how))
                rows[row] = list(generate(network, prompt, max_new_tokens=most, **how))
                texts[row] = []
        now = [row for row in rows if len(texts[row]) < len(rows[row])]
        for row, token in zip(now, batch.step(now) if now else [], strict=True):
            texts[row].append(token)
    assert sum(map(len, texts.values())) > 150
    for row, text in texts.items():
        assert text == rows[row][: len(text)]


def test_a_text_alone_is_computed_as_by_generate() -> None:
    network = NETWORK.build()
    initialise(network, 5)
    seen: list[torch.Tensor] = []
    network.norm.register_forward_hook(lambda _, __, out: seen.append(out))
    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    list(generate(network, torch.tensor([3, 1, 4]), max_new_tokens=30, temperature=0.0))
    batch, row = RaggedBatch(network), RaggedText([3, 1, 4], chooser(**greedy))
    for _ in range(30):
        batch.step([row])
    assert len(seen) == 60
    assert all(torch.equal(alone, ours) for alone, ours in zip(seen[:30], seen[30:], strict=True))
