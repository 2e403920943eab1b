"""The attack on the command line: every command in hostile environments and with hostile arguments.

    python -m tests.tools.attack_cli FOLDER [--only PATTERN]

makes a small recipe and a finished run in FOLDER, and starts each command in each environment, as a process of its own.
Prints counts by outcome as JSON, and the cases that ended in a traceback, a hang, an unexpected error (70), or an exit
code that is not documented. `--only` chooses cases by their names, as in 'no run /': those of commands that import
torch take seconds each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

EXIT_CODES = {0, 2, 3, 70, 129, 130, 141, 143}
SECONDS = 60.0

# How a shell starts a command, "$@", in the folder of its case.
ENVIRONMENTS = {
    "plain": '"$@"',
    "no stdin": '"$@" <&-',
    "no stdout": '"$@" >&-',
    "no stderr": '"$@" 2>&-',
    "no streams": '"$@" <&- >&- 2>&-',
    "full stdout": '"$@" >/dev/full',
    "full stderr": '"$@" 2>/dev/full',
    "full both": '"$@" >/dev/full 2>&1',
    "closed pipe": '"$@" | true; exit ${PIPESTATUS[0]}',
    "closed pipe of both": '"$@" 2>&1 | true; exit ${PIPESTATUS[0]}',
    "read-only stdout": '"$@" 1</dev/null',
    "ascii": 'PYTHONIOENCODING=ascii "$@"',
    "cp1252": 'PYTHONIOENCODING=cp1252 "$@"',
    "C": 'LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 "$@"',
    "utf-16": 'PYTHONIOENCODING=utf-16 "$@"',
    "file size": 'ulimit -f 16; "$@"',
    "no file size": 'ulimit -f 0; "$@"',
    "open files": 'ulimit -n 12; "$@"',
    "memory": 'ulimit -v 150000; "$@"',
    "more memory": 'ulimit -v 1500000; "$@"',
    "stack": 'ulimit -s 256; "$@"',
    "no TMPDIR": 'TMPDIR=/nonexistent "$@"',
    "no HOME": 'HOME=/nonexistent "$@"',
    "unset HOME": 'unset HOME; "$@"',
    "no cache": 'ROUNDTRIP_CACHE=/proc/nothing XDG_CACHE_HOME=/proc/nothing HF_HOME=/proc/nothing "$@"',
    "cache is a file": 'touch file; ROUNDTRIP_CACHE=$PWD/file "$@"',
    "no folder": 'mkdir gone; cd gone; rmdir ../gone; "$@"',
    "odd folder": "mkdir -p $'\\xff\\n\\x1b[31m'; cd $'\\xff\\n\\x1b[31m'; \"$@\"",
    "dumb": 'TERM=dumb "$@"',
    "one column": 'COLUMNS=1 LINES=1 "$@"',
    "columns abc": 'COLUMNS=abc "$@"',
    "no columns": 'COLUMNS=0 "$@"',
    "no color": 'NO_COLOR=1 "$@"',
    "color": 'FORCE_COLOR=1 TTY_COMPATIBLE=1 TTY_INTERACTIVE=1 "$@"',
    "terminal": 'script -qec "$(printf \'%q \' "$@")" /dev/null',
    "no environment": 'env -i PYTHONPATH="$PYTHONPATH" "$@"',
    "RANK": 'RANK=x WORLD_SIZE=-3 "$@"',
    "debug": '"$@" --debug >/dev/full',
}
ARGUMENTS = {
    "empty": b"",
    "space": b" ",
    "line feed": b"a\nb",
    "control": b"\x1b[31m\x07",
    "not utf-8": b"\xff\xfe.toml",
    "long": b"a" * 100_000,
    "long path": b"a/" * 50_000,
    "markup": b"[red]x[/]",
    "equals": b"=",
    # Links inside the folder of the case: no argument names a file of the system, which root could overwrite.
    "device": b"full",
    "null": b"null",
    "folder": b".",
    "dangling link": b"dangling",
    "dash": b"-",
    "tilde": b"~nobody-of-this-name/x",
    "surrogate": "\udcff\ud800".encode("utf-8", "surrogatepass"),
}


def commands(world: Path) -> dict[str, list[str]]:
    """Return the commands, by name; those that write do so in the folder of their case."""
    recipe, run, test = (str(world / name) for name in ("small.toml", "run", "test.tsv"))
    return {
        "help": ["--help"],
        "nothing": [],
        "version": ["--version"],
        "no recipe": ["train", "missing.toml"],
        "no run": ["translate", "missing", "--to", "es"],
        "evaluate nothing": ["evaluate", "--test", "missing.tsv", "--system", "missing"],
        "evaluate": ["evaluate", "--test", test, "--system", str(world / "system.es"), "--json", "out.json"],
        "translate": ["translate", run, "--to", "es"],
        "export": ["export", run, "exported"],
        "check": ["check", recipe, "--json"],
        "train": ["train", recipe, "--out", "run"],
    }


def with_argument(world: Path) -> dict[str, list[str]]:
    """Return commands in which `@` is a hostile argument."""
    recipe, run, test, system = (str(world / name) for name in ("small.toml", "run", "test.tsv", "system.es"))
    return {
        "command": ["@"],
        "recipe": ["train", "@"],
        "set": ["check", recipe, "--set", "@"],
        "set path": ["check", recipe, "--set", "model.path=@"],
        "set data": ["check", recipe, "--set", 'data.split.corpus={path="@"}'],
        "out": ["train", recipe, "--out", "@/x", "--set", "train.lr=-1"],
        "run": ["translate", "@", "--to", "es"],
        "to": ["translate", run, "--to", "@"],
        "stage": ["translate", run, "--to", "es", "--stage", "@"],
        "device": ["translate", run, "--to", "es", "--device", "@"],
        "test": ["evaluate", "--test", "@", "--system", system],
        "system": ["evaluate", "--test", test, "--system", "@", "--to", "es"],
        "json": ["evaluate", "--test", test, "--system", system, "--json", "@"],
        "comet": ["evaluate", "--test", test, "--system", system, "--comet", "@", "--comet-python", "@"],
        "target": ["evaluate", "--test", test, "--system", system, "--to", "@"],
        "export run": ["export", "@", "out"],
        "option": ["export", run, "out", "--merged", "@"],
    }


def cases(world: Path) -> Iterator[tuple[str, str, list[bytes]]]:
    """Yield the name of each case, the shell's part of it, and the arguments."""
    for name, arguments in commands(world).items():
        for environment, shell in ENVIRONMENTS.items():
            yield f"{name} / {environment}", shell, [os.fsencode(each) for each in arguments]
    for name, arguments in with_argument(world).items():
        for hostile, value in ARGUMENTS.items():
            filled = [os.fsencode(each).replace(b"@", value) for each in arguments]
            yield f"{name} = {hostile}", ENVIRONMENTS["plain"], filled


def outcome(shell: str, arguments: list[bytes], folder: Path) -> tuple[str, str]:
    """Start a command in an empty folder; return how it ended, and what it wrote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, target in {"full": "/dev/full", "null": "/dev/null", "dangling": "missing"}.items():
        (folder / name).symlink_to(target)
    command = ["bash", "-c", shell, "bash", sys.executable, "-m", "roundtrip", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, input=b"I see the moon.\n", capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "hangs", ""
    shown = (done.stdout + done.stderr).decode(errors="replace")
    wrong = next((word for word in ("Traceback", "Exception ignored", "Fatal Python error") if word in shown), None)
    if wrong and "--debug" not in shell:
        return f"{wrong} ({done.returncode})", shown
    return (str if done.returncode in EXIT_CODES else "undocumented exit code {}".format)(done.returncode), shown


def make_world(world: Path) -> None:
    """Write a model, a recipe, its finished run, and the files of an evaluation."""
    from tests.conftest import RECIPE, save_model, toy_pairs

    world.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(world / "run", ignore_errors=True)
    save_model(world / "model")
    pairs = toy_pairs()
    (world / "toy.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in pairs), encoding="utf-8")
    (world / "test.tsv").write_text("".join(f"{en}\t{es}\n" for en, es in pairs[:9]), encoding="utf-8")
    (world / "system.es").write_text("".join(f"{es}\n" for _, es in pairs[1:10]), encoding="utf-8")
    (world / "small.toml").write_text(RECIPE.format(model=world / "model"), encoding="utf-8")
    command = [sys.executable, "-m", "roundtrip", "train", str(world / "small.toml"), "--out", str(world / "run")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description="Start every command in hostile environments, and count outcomes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="only the cases whose name this pattern is found in")
    arguments = parser.parse_args()
    world = arguments.folder.resolve()
    make_world(world)
    counts: Counter[str] = Counter()
    failed = 0
    for name, shell, values in cases(world):
        if not re.search(arguments.only, name):
            continue
        start = time.perf_counter()
        ended, shown = outcome(shell, values, world / "case")
        counts[ended] += 1
        if not ended.isdigit() or ended == "70":
            failed += 1
            shell_command = shlex.join(value.decode(errors="replace")[:80] for value in values)
            print(
                f"--- {name}: {ended}, {time.perf_counter() - start:.1f} s: {shell_command}\n{shown[-1500:]}",
                flush=True,
            )
    print(json.dumps(counts, indent=1, sort_keys=True))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
