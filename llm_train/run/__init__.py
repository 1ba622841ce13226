"""From settings to a Trainer, and the files of a run."""
