"""One program per peer: the same model, batch and dtype, each in the way its project does it."""
