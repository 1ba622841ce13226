"""The command line with a slow object store: half a second for a checkpoint's files."""

from __future__ import annotations

import sys
import time
from typing import Any
from unittest import mock

from fsspec.implementations.local import LocalFileSystem

from llm_train.cli import main

SECONDS = 0.05

if __name__ == "__main__":
    put = LocalFileSystem.put_file

    def slowly(self: LocalFileSystem, *arguments: Any, **options: Any) -> None:
        time.sleep(SECONDS)
        put(self, *arguments, **options)

    with mock.patch.object(LocalFileSystem, "put_file", slowly):
        main(sys.argv[1:])
