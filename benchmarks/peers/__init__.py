"""One program per peer: the same model, batch and dtype, each in its own project's way."""
