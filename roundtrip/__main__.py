"""python -m roundtrip COMMAND, and the console script `roundtrip`."""

from roundtrip.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
