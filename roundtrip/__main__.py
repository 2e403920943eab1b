"""python -m roundtrip COMMAND, and the console script `roundtrip`."""

import importlib
import signal


def main(module: str = "roundtrip.cli.app") -> None:
    """Run the `main` of a module as the command line of this process."""
    # Until a command runs, Ctrl-C ends the process without a traceback of imports.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    streams = importlib.import_module("roundtrip.cli.streams")
    streams.protect_streams()
    app = importlib.import_module("roundtrip.cli.app")
    app.exit_with(lambda: importlib.import_module(module).main())


if __name__ == "__main__":
    main()
