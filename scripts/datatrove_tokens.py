"""Tokenises a corpus with datatrove, on this machine, in a SLURM array or on a Ray cluster.

``DatatroveTokens`` trains on what it writes. Each task reads its share of the input files and
writes files of its own, so that tasks that were finished are skipped when the command is run again;
folders may be URLs that fsspec knows. Documents are not shuffled: training visits windows in a
random order.

    python scripts/datatrove_tokens.py texts tokenizer.json tokens --tasks 500 \
        --executor slurm --partition cpu --time 04:00:00
"""

from __future__ import annotations

import argparse
from typing import Any


def executor(options: argparse.Namespace, pipeline: list[Any]) -> Any:
    """Returns what runs the pipeline, made where it is chosen: each needs packages of its own."""
    common = {
        "pipeline": pipeline,
        "tasks": options.tasks,
        "workers": options.workers,
        "logging_dir": f"{options.output.rstrip('/')}.logs",
    }
    if options.executor == "slurm":
        from datatrove.executor import SlurmPipelineExecutor

        return SlurmPipelineExecutor(
            **common, time=options.time, partition=options.partition, job_name="tokens"
        )
    if options.executor == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor(**common)
    from datatrove.executor import LocalPipelineExecutor

    return LocalPipelineExecutor(**common)


def main() -> None:
    """Reads the command line, and runs or submits the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("input", help="folder of the texts")
    parser.add_argument("tokenizer", help="tokenizer.json, or a name on the Hugging Face hub")
    parser.add_argument("output", help="folder for the tokens; logs go to OUTPUT.logs")
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--field", default="text", help="key or column of the text")
    parser.add_argument("--end-of-text", default="<|endoftext|>", help="put after each document")
    parser.add_argument(
        "--tasks", type=int, default=1, help="parts of the work, at most one a file"
    )
    parser.add_argument("--workers", type=int, default=-1, help="tasks at a time; -1 is all")
    parser.add_argument("--executor", choices=("local", "slurm", "ray"), default="local")
    parser.add_argument("--partition", default="", help="of SLURM")
    parser.add_argument("--time", default="12:00:00", help="limit of a SLURM task")
    options = parser.parse_args()
    from datatrove.pipeline.readers import JsonlReader, ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    reader = {"jsonl": JsonlReader, "parquet": ParquetReader}[options.format]
    pipeline = [
        reader(options.input, text_key=options.field),
        DocumentTokenizer(
            options.output,
            tokenizer_name_or_path=options.tokenizer,
            eos_token=options.end_of_text,
            shuffle_documents=False,
        ),
    ]
    executor(options, pipeline).run()


if __name__ == "__main__":
    main()
