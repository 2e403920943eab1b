"""Which files `translate` reads and writes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roundtrip.data.documents.formats import document_format
from roundtrip.runtime.atomic_io import is_special, is_writable
from roundtrip.runtime.errors import TextError, UsageError


@dataclass(frozen=True)
class Plan:
    """Which file becomes which, and the first path that is written, beside which translations are kept meanwhile."""

    files: list[tuple[Path, Path]]
    first: Path

    def cache(self, key: str) -> Path:
        """Return where translations are kept: commands with other keys keep theirs elsewhere."""
        return self.first.with_name(f".{self.first.name}.{key[:12]}.roundtrip")


def plan_files(paths: Sequence[Path], *, in_place: bool) -> Plan:
    """Return which files are read and written: as `cp` does, the last path is the output unless `in_place`."""
    if not in_place and len(paths) < 2:
        cure = "name the file to write, or --in-place to change this one"
        raise UsageError("there is no output", place=str(paths[0]), cure=cure)
    inputs, output = (list(paths), None) if in_place else (list(paths[:-1]), paths[-1])
    into_folder = output is not None and (output.is_dir() or len(inputs) > 1)
    files: list[tuple[Path, Path]] = []
    for path in inputs:
        if not path.exists():
            raise TextError("no such file or folder", place=str(path), cure="check its path")
        if path.is_dir():
            names = _documents_in(path, output)
            files += [(path / name, (path if output is None else output) / name) for name in names]
        else:
            files.append((path, path if output is None else output / path.name if into_folder else output))
    _check_outputs(files, in_place=in_place)
    return Plan(files, (paths[0] if output is None else output).absolute())


def _documents_in(folder: Path, output: Path | None) -> list[Path]:
    """Return the names of all documents in a folder, without hidden ones and those of an output inside of it."""
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file() and document_format(path)]
    resolved = None if output is None else output.resolve()
    names = [
        name
        for name in names
        if not any(part.startswith(".") for part in name.parts)
        and (resolved in (None, folder.resolve()) or resolved not in (folder / name).resolve().parents)
    ]
    if not names:
        cure = "name a folder with files such as .po, .xliff, .tmx, .csv, .jsonl, .srt or .txt"
        raise TextError("there is nothing in it that can be translated", place=str(folder), cure=cure)
    return names


def _check_outputs(files: Sequence[tuple[Path, Path]], *, in_place: bool) -> None:
    """Refuse outputs that would replace an input or one another, are in another format or cannot be written."""
    inputs = {path.resolve() for path, _ in files}
    twice = [path for path, number in Counter(output.resolve() for _, output in files).items() if number > 1]
    if twice:
        raise UsageError("two files would be written there", place=str(twice[0]), cure="name folders of their own")
    for path, output in files:
        if not in_place and output.resolve() in inputs:
            raise UsageError("is an input too", place=str(output), cure="use --in-place, or name another output")
        if document_format(output) not in (None, document_format(path) or "txt"):
            problem = f"the output would be in the format of {path.name}"
            raise UsageError(problem, place=str(output), cure=f"let its name end in {path.suffix}")
        if is_special(output) or not is_writable(output):
            raise UsageError("cannot be written", place=str(output), cure="name a file in a folder of your own")
