"""The documents that a window of training tokens was cut from."""

from collections.abc import Iterator
from typing import NamedTuple

from llm_train.data.base import NO_TOKEN, TRAIN
from llm_train.data.token_source import Documents, Place, TokenSource


class Passage(NamedTuple):
    """What a window has of one document.

    Attributes:
        source: the name of the source in a mixture; "" where there is one source.
        place: of the document; None where it is unknown.
        start: the first of its tokens in the window, counted in the split.
        stop: one more than the last of them.
        ids: these tokens, as training reads them: rearranged, with what fill-in-the-middle adds.
    """

    source: str
    place: Place | None
    start: int
    stop: int
    ids: list[int]


def passages(source: TokenSource, sequence: int, seed: int, sample: int) -> Iterator[Passage]:
    """What training reads as sample number ``sample`` of a run, in the order of its tokens.

    Args:
        source: ``data.source`` of the run.
        sequence: ``batch.sequence``.
        seed: of the run.
        sample: counted from 0 over the whole run.
    """
    windows = source.train_windows(sequence, seed)
    ids = windows.batch([sample])[0]
    ids = ids[ids != NO_TOKEN]
    done = 0
    for span in windows.spans(sample):
        documents = source.called(span.source).documents(TRAIN)
        for start, stop, place in _documents(documents, span.start, span.stop):
            size = stop - start + span.added
            if part := ids[done : done + size].tolist():  # others were pushed out of the window
                yield Passage(span.source, place, start, min(stop, start + len(part)), part)
            done += size
    if done < ids.size:  # of a source that does not say where its windows come from
        yield Passage("", None, 0, ids.size - done, ids[done:].tolist())


def _documents(
    documents: Documents | None, start: int, stop: int
) -> Iterator[tuple[int, int, Place | None]]:
    """The parts of tokens ``start .. stop`` that belong to one document each."""
    while start < stop:
        place = documents.find(start) if documents is not None else None
        end = min(stop, place.stop) if place is not None else stop
        yield start, end, place
        start = end
