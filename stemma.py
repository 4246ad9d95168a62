"""The command line: `stemma COMMAND`. The commands are in commands/."""

from __future__ import annotations

import os
import sys

import commands.chain
import commands.corpus
import commands.questions  # noqa: F401 - importing the modules adds their commands
from commands.terminal import app


def main() -> None:
    """Console entry point."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if sys.argv[1:2] == ["clean"]:
        from corpus.engines.pool import block_pandas

        block_pandas()
    app()


if __name__ == "__main__":
    main()
