"""Says what a run will need and take on given GPUs, and which is fastest; needs no device."""

import argparse

from llm_train.errors import ConfigError
from llm_train.verbs.base import Load, Verb


class Plan(Verb):
    """Plans without allocating anything."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """The devices to plan for."""
        parser.add_argument("--devices", type=int, default=0, help="GPUs of a node")
        parser.add_argument("--nodes", type=int, default=0, help="nodes")
        parser.add_argument("--gpu", default="h200", help="short name of the device")
        parser.add_argument("--json", default="", metavar="OUT_FILE", help="write the same as JSON")

    def run(self, flags: argparse.Namespace, load: Load) -> None:
        """Prints memory, time and traffic."""
        if min(flags.devices, flags.nodes) < 0:
            raise ConfigError(
                f"--devices={flags.devices} and --nodes={flags.nodes} are counts; leave out what "
                "the configuration says"
            )
        settings = load(flags.settings)

        from llm_train.plan.draft import plan

        plan(settings, flags.gpu, flags.json, devices=flags.devices, nodes=flags.nodes)
