"""Shows what a step reads, and counts, compares and verifies prepared tokens."""

import argparse
from collections.abc import Callable
from pathlib import Path

from llm_train.runtime.terminal import say, section
from llm_train.verbs.base import Load, Verb

_MEGABYTE = 1_000_000


class Data(Verb):
    """Answers questions about prepared tokens; trains and changes nothing."""

    reads = "checkpoint"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """One word for each question."""
        words = parser.add_subparsers(dest="question", metavar="QUESTION", required=True)

        show = words.add_parser("show", help="the documents that a step trains on")
        show.set_defaults(answer=_show)
        show.add_argument("config", nargs="+", help="a run directory, or configuration files")
        show.add_argument("--step", type=int, required=True, help="counted from 1, as in metrics")
        show.add_argument("--samples", type=int, default=4, help="how many of them; 0 is all")
        show.add_argument(
            "--characters", type=int, default=60, help="of text to show of each; 0 is all"
        )

        stats = words.add_parser("stats", help="counts, lengths, compression and copies")
        stats.set_defaults(answer=_stats)
        stats.add_argument("folder", help="what data.source.path names")
        stats.add_argument("--picture", default="", metavar="FILE", help="default: FOLDER.png")

        diff = words.add_parser("diff", help="what two folders differ in; status 1 if in anything")
        diff.set_defaults(answer=_diff)
        diff.add_argument("folders", nargs=2, help="two folders of prepared tokens")

        verify = words.add_parser("verify", help="reads every byte and compares it")
        verify.set_defaults(answer=_verify)
        verify.add_argument("folder", help="what data.source.path names")

        compare = words.add_parser("tokenizers", help="several tokenizers on the same text")
        compare.set_defaults(answer=_tokenizers)
        compare.add_argument("folder", help="prepared tokens, whose text is taken")
        compare.add_argument("others", nargs="*", help="tokenizer.json or .model files, or folders")
        compare.add_argument("--megabytes", type=float, default=10, help="of text; 0 is all")

    def run(self, flags: argparse.Namespace, load: Load) -> int | None:
        """Answers one question."""
        status: int | None = flags.answer(flags, load)
        return status


def _show(flags: argparse.Namespace, load: Load) -> None:

    from llm_train.data.audit.passages import passages
    from llm_train.errors import ConfigError, check_at_least

    check_at_least(flags, 0, "samples", "characters", prefix="--", hint="; 0 shows all")
    files = [Path(name) / "config.yaml" if Path(name).is_dir() else name for name in flags.config]
    for file in map(str, files):
        if not file.startswith("preset:") and not Path(file).is_file():
            raise ConfigError(f"{file}: no such file; name a YAML file, a run or preset:NAME")
    settings = load([word for file in files for word in ("-c", str(file))])
    derived, source = settings.derive(), settings.data.source
    if not 1 <= flags.step <= derived.total_steps:
        raise ConfigError(
            f"--step {flags.step} is not one of this run's 1 .. {derived.total_steps}"
        )
    first, end = derived.samples(flags.step - 1), derived.samples(flags.step)
    decode = _decoder(source.tokenizer_text())
    say(f"step {flags.step}: samples {first:,} .. {end - 1:,}, {derived.sequence:,} targets each")
    shown = range(first, min(end, first + (flags.samples or end)))
    for sample in shown:
        say(f"\nsample {sample:,}")
        for part in passages(source, derived.sequence, settings.seed, sample):
            place = part.place
            key = place.key if place else "document unknown"
            inside = (
                f"{part.start - place.start:,} of {place.stop - place.start:,}" if place else ""
            )
            beginning = decode(part.ids)[: flags.characters or None]
            named = f"{part.source}: " if part.source else ""
            say(
                f"  {named}{key}  tokens {part.start:,} .. {part.stop - 1:,}"
                f"{f' (from {inside} on)' if inside else ''}  {beginning!r}"
            )
    if len(shown) < end - first:
        say(f"\n{end - first - len(shown):,} more samples; --samples 0 shows all")


def _stats(flags: argparse.Namespace, load: Load) -> None:
    from importlib.util import find_spec

    from llm_train.data.audit.prepared_folder import PreparedFolder
    from llm_train.data.audit.statistics import statistics
    from llm_train.data.reading import skipped_lines
    from llm_train.runtime.disk import require_writable

    folder = PreparedFolder(flags.folder)
    picture = Path(flags.picture or f"{folder.path}.png")
    require_writable(picture, "--picture", file=True)
    manifest, found = folder.manifest, statistics(folder)
    for name, split in found.items():
        say(section(name, split.rows))
    say(section("skipped documents", skipped_lines(manifest.skipped, manifest.examples)))
    say(f"\nencoded with {manifest.encoder or 'a library that was not written down'}")
    references = {name: value for name, value in manifest.references.items() if value is not None}
    say(section("held out, bits per byte of compressors", references))
    if find_spec("altair") is None or find_spec("vl_convert") is None:
        say("\nno picture: pip install llm-train[report]")
        return
    from llm_train.report.lengths import png

    lengths = {name: split.lengths for name, split in found.items()}
    picture.write_bytes(png(f"{folder.path}: tokens a document", lengths))
    say(f"\nwrote {picture}")


def _diff(flags: argparse.Namespace, load: Load) -> int:
    from llm_train.data.audit.folder_difference import difference
    from llm_train.data.audit.prepared_folder import PreparedFolder
    from llm_train.data.shards import verify

    first, second = map(PreparedFolder, flags.folders)
    # What is said of manifests is said of what is there.
    files = {each.path: verify(each.path, checksums=True).files for each in (first, second)}
    lines = list(difference(first, second))
    for path, found in files.items():
        say(f"{path}: SHA-256 of {len(found):,} files, {sum(f.bytes for f in found):,} bytes")
    for line in lines or [f"{first.path} and {second.path} hold the same tokens"]:
        say(line)
    return int(bool(lines))


def _verify(flags: argparse.Namespace, load: Load) -> None:
    from llm_train.data.audit.prepared_folder import PreparedFolder
    from llm_train.data.audit.verification import verified

    say(section(f"{flags.folder} is as it was written", verified(PreparedFolder(flags.folder))))


def _tokenizers(flags: argparse.Namespace, load: Load) -> None:
    from llm_train.data.audit import compression
    from llm_train.data.audit.prepared_folder import PreparedFolder
    from llm_train.errors import check_at_least

    check_at_least(flags, 0, "megabytes", prefix="--", hint="; 0 takes all text")
    folder = PreparedFolder(flags.folder)
    texts = compression.sample_of(folder, int(flags.megabytes * _MEGABYTE))
    rows = compression.table([flags.folder, *flags.others], texts)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    say(f"{len(texts):,} documents, {sum(len(text.encode()) for text in texts):,} bytes of text\n")
    for row in rows:
        cells = zip(row, widths, strict=True)
        say("  ".join(cell.ljust(width) for cell, width in cells).rstrip())


def _decoder(tokenizer: str) -> Callable[[list[int]], str]:
    """From ids to text, or to the ids themselves where there is no tokenizer."""
    if not tokenizer:
        return str
    from tokenizers import Tokenizer

    known = Tokenizer.from_str(tokenizer)
    return lambda ids: str(known.decode(ids, skip_special_tokens=False))
