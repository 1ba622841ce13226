"""The errors a user can cause, one class for each thing that was wrong.

Every message is one line that names the key, the value, the rule and the way out; the command line
prints it as it is, without a traceback. Anything else that escapes is a bug and keeps its
traceback.
"""


class LLMTrainError(Exception):
    """Base of every error whose message is meant for the person who typed the command."""


class ConfigError(LLMTrainError, ValueError):
    """A setting, or a combination of settings, that cannot be run."""


class DataError(LLMTrainError, RuntimeError):
    """A corpus, tokenizer or token shard that is missing, damaged or not what the settings say."""


class CheckpointError(LLMTrainError, RuntimeError):
    """A checkpoint that is missing, incomplete, damaged or does not fit the run."""
