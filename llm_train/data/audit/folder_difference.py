"""What two folders of prepared tokens differ in: recipe, tokenizer, documents."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from llm_train.data.audit.prepared_folder import PreparedFolder
from llm_train.data.recipe import differences
from llm_train.data.shards import TOKENIZER

_EXAMPLES = 3


def difference(first: PreparedFolder, second: PreparedFolder) -> Iterator[str]:
    """One line for each thing that is not the same; none where the tokens are."""
    a, b = first.manifest, second.manifest
    yield from (f"recipe: {line}" for line in differences(a.recipe, b.recipe))
    yield from (f"provenance: {line}" for line in differences(a.provenance, b.provenance))
    yield from (f"skipped: {line}" for line in differences(a.skipped, b.skipped))
    contents = [(folder.path / TOKENIZER).read_bytes() for folder in (first, second)]
    same_ids = contents[0] == contents[1]
    if not same_ids:
        yield from _tokens(first, second)
    for name in dict.fromkeys([*a.splits, *b.splits]):
        if name not in a.splits or name not in b.splits:
            yield f"{name}: only {second.path if name in b.splits else first.path} has it"
        elif a.splits[name].sha256 != b.splits[name].sha256 or not same_ids:
            yield from _documents(first, second, name, as_text=not same_ids)


def _tokens(first: PreparedFolder, second: PreparedFolder) -> Iterator[str]:
    a, b = (folder.tokenizer.get_vocab() for folder in (first, second))
    removed, added = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
    moved = sum(a[token] != b[token] for token in a.keys() & b.keys())
    yield (
        f"tokenizer: {len(a):,} -> {len(b):,} tokens, {len(removed):,} removed{_some(removed)}, "
        f"{len(added):,} added{_some(added)}, {moved:,} with another id"
    )


def _documents(
    first: PreparedFolder, second: PreparedFolder, split: str, as_text: bool
) -> Iterator[str]:
    """By content, so that a document that moved within the split is the same."""
    a, b = (folder.digests(split, as_text) for folder in (first, second))
    removed, added = np.flatnonzero(~np.isin(a, b)), np.flatnonzero(~np.isin(b, a))
    for word, folder, numbers in (("removed", first, removed), ("added", second, added)):
        if numbers.size:
            yield f"{split}: {numbers.size:,} documents {word}{_keys(folder, split, numbers)}"
    if not removed.size and not added.size:
        if a.size != b.size:
            yield f"{split}: {a.size:,} -> {b.size:,} documents, by copies of the same texts"
        elif not np.array_equal(a, b):
            yield f"{split}: the same documents in another order"


def _keys(folder: PreparedFolder, split: str, numbers: npt.NDArray[np.intp]) -> str:
    return _some([folder.key(split, int(n)) for n in numbers[: _EXAMPLES + 1]], len(numbers))


def _some(names: list[str], count: int = 0) -> str:
    """The first names, in brackets."""
    shown = ", ".join(map(repr, names[:_EXAMPLES]))
    more = ", ..." if max(count, len(names)) > _EXAMPLES else ""
    return f" ({shown}{more})" if names else ""
