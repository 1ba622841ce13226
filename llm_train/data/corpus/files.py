"""Text in files: which files make a unit, and from each of them to documents."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256

from llm_train.data.base import Corpus, Skipped, Unit
from llm_train.data.corpus import opening
from llm_train.data.corpus.formats.base import Format, Span
from llm_train.data.corpus.found import FoundFile, find
from llm_train.data.corpus.rows import Item
from llm_train.data.recipe import ADDED_LATER
from llm_train.errors import ConfigError, DataError

UNIT_BYTES = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 4, 1 << 14


@dataclass(frozen=True, kw_only=True)
class FileUnit(Unit):
    """Some files that follow one another, or a stretch of one.

    Attributes:
        files: at least one.
        span: the stretch; None is all of the files.
    """

    files: tuple[FoundFile, ...]
    span: Span | None


class FileCorpus(Corpus):
    """Documents that lie in files."""

    @abstractmethod
    def files(self) -> list[FoundFile]:
        """The files, in the same order at every call."""

    @abstractmethod
    def read_file(self, file: FoundFile, span: Span | None) -> Iterator[Item]:
        """What one file or a stretch of it holds, in order."""

    def spans(self, file: FoundFile) -> Sequence[Span]:
        """Stretches of a large file that can be read alone; empty where it has none."""
        return ()

    def units(self) -> list[FileUnit]:
        """Small files together, large ones cut where their format allows it."""
        groups: list[tuple[list[FoundFile], Span | None]] = []
        room = 0
        for file in self.files():
            if file.size >= 2 * UNIT_BYTES and (spans := self.spans(file)):
                groups += [([file], span) for span in spans]
                room = 0
            elif groups and not groups[-1][1] and file.size <= room:  # of size 0, too
                groups[-1][0].append(file)
                room -= file.size
            else:
                groups.append(([file], None))
                room = UNIT_BYTES - file.size
        stamp = cache(_stamp)  # of a file that is cut, once
        units = []
        for number, (files, span) in enumerate(groups):
            size = sum(file.size for file in files)
            stamps = "\n".join(map(stamp, files))
            unit = FileUnit(
                name=f"{number}:{files[0].key}",
                size=min(size, UNIT_BYTES) if span else size,
                stamp=sha256(stamps.encode()).hexdigest(),
                files=(*files,),
                span=span,
            )
            units.append(unit)
        return units

    def documents(self, unit: Unit) -> Iterator[Item]:
        """All documents of the unit's files."""
        assert isinstance(unit, FileUnit), "a corpus is given its own units"
        for file in unit.files:
            yield from self.read_file(file, unit.span)


@dataclass(frozen=True, kw_only=True)
class NamedFiles(FileCorpus):
    """Documents in files that the configuration names.

    Attributes:
        paths: files, directories, glob patterns or URLs.
        encoding: of text; ``auto`` guesses it for each file.
        members: pattern for the members of archives.
    """

    paths: list[str]
    encoding: str = field(default="utf-8", metadata=ADDED_LATER)
    members: str = field(default="*", metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        paths: Sequence[str] = self.paths  # a script may have passed a text
        if isinstance(paths, str) or not paths or not all(paths):
            raise ConfigError(
                f"paths={paths!r} must be a list of files, directories, glob patterns or URLs, "
                "as in [corpus/*.txt]"
            )
        opening.is_utf8(self.encoding)

    @abstractmethod
    def format_of(self, content: opening.Unpacked) -> Format | None:
        """How to read a file or a member; None: it is neither text nor a known format."""

    def files(self) -> list[FoundFile]:
        """Files named by ``paths``, in their order and sorted within each; none twice.

        Raises:
            DataError: an entry that matches nothing or cannot be reached.
        """
        return find(self.paths)

    def spans(self, file: FoundFile) -> Sequence[Span]:
        """Of files that are neither packed nor in another encoding than UTF-8."""
        with opening.named_cause(file.path), opening.opened(file) as stream:
            kind = opening.kind_of(stream)
            content = opening.Unpacked(file.key, file.path, file.path, stream, kind)
            found = self.format_of(content)
            if found is None or found.is_text == bool(content.kind):
                return ()  # packed, or not to be read at all
            if found.is_text and not opening.is_utf8(self.encoding):
                return ()
            return found.spans(stream, file.size, UNIT_BYTES)

    def read_file(self, file: FoundFile, span: Span | None) -> Iterator[Item]:
        """The file, or the members of the archive that it is."""
        for content in opening.contents(file, self.members):
            found, stream = self.format_of(content), content.stream
            if found is None:
                yield Skipped(content.key, "neither text nor a known format", content.name)
                continue
            if found.is_text == bool(content.kind):
                raise DataError(
                    f"{content.path} is {content.kind or 'text'}, which {type(self).__name__} does "
                    "not expect; take the corpus Files with format: auto, or leave it out of paths"
                )
            with opening.named_cause(content.path):
                if found.is_text:
                    stream = opening.as_utf8(content, self.encoding)
                yield from found.read(stream, content.key, span)


def _stamp(file: FoundFile) -> str:
    """Size, time and a few samples, of which small files consist; of a URL what its server says."""
    digest = sha256(f"{file.size} {file.version}".encode())
    if not file.remote:
        with opening.named_cause(file.path), open(file.path, "rb") as stream:
            for sample in range(_SAMPLES if file.size > _SAMPLE_BYTES else 1):
                stream.seek(max(0, file.size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
