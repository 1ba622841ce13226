"""A text that stands for more than a machine holds is refused before anything is built of it."""

from __future__ import annotations

import re

import pytest

from llm_train.runtime import yaml12


def bomb(levels: int, item: str) -> str:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} {item.format(','.join([f'*a{level - 1}'] * 9))}")
    return "\n".join(lines)


HOSTILE = {
    "aliases": (bomb(10, "[{}]"), "line 6, .*values; remove aliases"),
    "merged": (bomb(10, "{{<<: [{}]}}"), "line 6, .*values; remove aliases"),
    "itself": ("a: &a [*a]", "deeper than 50 levels"),
    "brackets": ("[" * 500 + "]" * 500, "deeper than 50 levels"),
    "digits": ("seed: " + "9" * 200_000, "400 digits; shorten it"),
    "characters": ("seed: " + "9" * 1_000_000, "262,144 characters"),
    "tag": ("a: !!bool maybe", "does not fit its tag .*; remove the tag"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts(name):
    text, message = HOSTILE[name]
    with pytest.raises(yaml12.YAMLError) as caught:
        yaml12.load(text)
    assert re.search(message, yaml12.where(caught.value))


def test_aliases_that_a_configuration_has():
    assert yaml12.load("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]")["b"] == {"x": 1, "y": 2}
