"""Lists the configurations that come with the package, or prints one, to be edited as a file."""

import argparse

from llm_train.verbs.base import Load, Verb


class Presets(Verb):
    """Shows what ``-c preset:NAME`` may name."""

    reads = "files"

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Which one to print."""
        parser.add_argument("name", nargs="?", default="", help="print this one")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Prints each with the first line of its file, or the whole file of one."""
        from llm_train.errors import ConfigError
        from llm_train.preset_files import presets
        from llm_train.runtime.terminal import say, say_sections

        files = presets()
        name = flags.name.removeprefix("preset:")
        if name and name not in files:
            raise ConfigError(f"{name} is not a preset; llm-train presets lists them")
        if name:
            say(files[name].read_text("utf-8").rstrip("\n"))
            return
        sections: dict[str, dict[str, str]] = {}
        for key, file in files.items():
            use = "sweep preset:NAME" if key.startswith("sweeps/") else "fit -c preset:NAME"
            first = file.read_text("utf-8").partition("\n")[0].removeprefix("# ")
            sections.setdefault(f"llm-train {use}", {})[key] = first
        say_sections(sections)
        say("\nllm-train presets NAME > mine.yaml writes one to be edited, for -c mine.yaml")
