"""python -m roundtrip.train RECIPE: the same as `roundtrip train RECIPE`."""

from roundtrip.cli.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
