"""Finds every problem of a configuration at once, and prints every number that follows from it.

A parser sees one key at a time. What is left are rules between keys: batch against ranks, sequence
against network, precision against strategy, settings that would have no effect. Nothing here
touches a device, so a configuration for a thousand GPUs can be checked on a laptop.
"""

from llm_train.check.problems import missing as missing
from llm_train.check.problems import notes as notes
from llm_train.check.problems import problems as problems
from llm_train.check.problems import require_sound as require_sound
from llm_train.check.table import table as table
