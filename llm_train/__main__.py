"""``python -m llm_train`` is ``llm-train``."""

from llm_train.cli import main

if __name__ == "__main__":
    main()
