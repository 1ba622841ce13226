"""The command line with a slow disk: slow_writing_worker.py SECONDS fit ..."""

from __future__ import annotations

import sys
import time
from typing import Any
from unittest import mock

from llm_train.checkpoint.content import Content
from llm_train.cli import main

if __name__ == "__main__":
    write = Content.write

    def slowly(self: Content, *arguments: Any) -> None:
        time.sleep(float(sys.argv[1]))
        write(self, *arguments)

    with mock.patch.object(Content, "write", slowly):
        main(sys.argv[2:])
