"""The command line of modules that take nothing, or texts in a fixed order from another process."""

from __future__ import annotations

import argparse
import sys


def arguments(*names: str, more: str = "") -> list[str]:
    """Returns what the module that runs was given; ``--help`` and a wrong number end the process.

    Args:
        names: of the texts that it needs.
        more: name of any further ones, whatever they look like; "" is none.
    """
    module = sys.modules["__main__"]
    name = module.__spec__.name if module.__spec__ else sys.argv[0]
    needs = "It takes no arguments." if not names else "The program that needs it starts it."
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=module.__doc__,
        epilog=needs,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for each in names:
        parser.add_argument(each)
    if more:
        parser.add_argument(more, nargs=argparse.REMAINDER)
    found = vars(parser.parse_args())
    return [*(found[each] for each in names), *found.get(more, [])]
