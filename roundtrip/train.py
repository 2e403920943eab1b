"""python -m roundtrip.train RECIPE: trains both directions of a recipe."""

from roundtrip.cli.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
