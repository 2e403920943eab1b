"""python -m roundtrip.train RECIPE: the same as `roundtrip train RECIPE`."""

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """`roundtrip.train` is a function of the library; importing this module, its namesake, must not hide it."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from roundtrip.backtranslation.session import train

        return train(*arguments, **settings)


if __name__ == "__main__":
    from roundtrip.__main__ import main

    main("roundtrip.cli.train")
else:
    sys.modules[__name__].__class__ = _CallableModule
