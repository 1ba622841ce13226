"""The errors that a user can cause, with one class for each kind of input.

Every message is one line that names the key, the value, the rule and the way out. The command line
prints the message as it is, without a traceback. Any other exception that escapes is a bug and
keeps its traceback.
"""


class LLMTrainError(Exception):
    """The base of every error whose message is meant for the person who typed the command."""


class ConfigError(LLMTrainError, ValueError):
    """Reports a setting, or a combination of settings, that cannot be run."""


class DataError(LLMTrainError, RuntimeError):
    """Reports a corpus, tokenizer or token shard that is missing, damaged or not as configured."""


class CheckpointError(LLMTrainError, RuntimeError):
    """Reports a checkpoint that is missing, incomplete or damaged, or that does not fit the run."""
