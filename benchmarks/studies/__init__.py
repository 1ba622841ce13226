"""What `python -m benchmarks.gpu` measures: one file per study, each a process of its own."""
