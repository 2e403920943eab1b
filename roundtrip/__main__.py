"""python -m roundtrip COMMAND: train, check, translate, evaluate, export."""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("train", "check", "translate", "evaluate", "export")


def main() -> None:
    """Run the command that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m roundtrip {{{','.join(COMMANDS)}}} ...")
    command = sys.argv.pop(1)
    importlib.import_module(f"roundtrip.cli.{command}").main()


if __name__ == "__main__":
    main()
