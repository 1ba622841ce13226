"""The studies of `python -m benchmarks.gpu`: one file per study, each run as a process."""
