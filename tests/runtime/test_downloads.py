"""A spec becomes files, the same each time, and no archive writes where it should not."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from roundtrip.runtime import downloads
from roundtrip.runtime.errors import SourceError

ZEROS = "0" * 64
MEMBERS = {
    "words/data/es.po": "hola\n",
    "words/data/de.po": "hallo\n",
    "words/data/more/fr.po": "bonjour\n",
    "words/__init__.py": "raise SystemExit('nothing in a wheel is ever run')\n",
    "words-1.0.dist-info/METADATA": "Name: words\n",
}
HOSTILE = [
    "../out.txt",
    "a/../../out.txt",
    "/out.txt",
    "C:/out.txt",
    "C:out.txt",
    "a\\..\\..\\out.txt",
    "a//b",
    "./a",
    "~/out.txt",
]

# Fixtures are made once for all examples of a test; those that write make a folder of their own.
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ROUNDTRIP_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path, MEMBERS)


class Shelf:
    """Stands where pip stands: brings the wheel it was given, and counts how often it was asked."""

    def __init__(self) -> None:
        self.wheel: Path | None = None
        self.asked: list[str] = []

    def download(self, name: str, version: str, folder: Path) -> None:
        self.asked.append(f"{name}=={version}")
        if self.wheel is not None:
            shutil.copy(self.wheel, folder)


@pytest.fixture(autouse=True)
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    shelf = Shelf()
    monkeypatch.setattr(downloads, "_pip_download", shelf.download)
    return shelf


def make_wheel(folder: Path, members: dict[str, str], name: str = "words-1.0-py3-none-any.whl") -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return path


def spec_of(wheel: Path, path: str) -> str:
    return f"pypi:words==1.0/{path}#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def fetch(shelf: Shelf, wheel: Path, path: str) -> list[Path]:
    shelf.wheel = wheel
    return downloads.resolve(spec_of(wheel, path), Path())


def files_below(folder: Path) -> set[Path]:
    """Return the files in a folder but for the lock of a cache."""
    return {path for path in folder.rglob("*") if (not path.is_dir() or path.is_symlink()) and path.name != ".lock"}


# Local paths


def test_relative_paths_start_at_the_folder_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    assert downloads.resolve("a.txt", tmp_path) == [tmp_path / "a.txt"]
    assert downloads.resolve(str(tmp_path / "a.txt"), Path("/elsewhere")) == [tmp_path / "a.txt"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.txt").touch()
    assert downloads.resolve("~/a.txt", Path("/elsewhere")) == [tmp_path / "a.txt"]


def test_globs_are_sorted_and_see_files_only(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden.txt", "sub/.git/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.txt").mkdir()
    assert downloads.resolve("*.txt", tmp_path) == [tmp_path / "a.txt", tmp_path / "b.txt"]
    everything = [tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "sub/c.txt"]
    assert downloads.resolve("**/*.txt", tmp_path) == everything
    assert downloads.resolve("**", tmp_path) == everything
    assert downloads.resolve(str(tmp_path / "**/*.txt"), Path("/elsewhere")) == everything
    assert downloads.resolve(".*.txt", tmp_path) == [tmp_path / ".hidden.txt"]


def test_names_with_brackets_are_names_first(tmp_path: Path) -> None:
    folder = tmp_path / "[v1]"
    folder.mkdir()
    for name in ("a[1].txt", "a1.txt"):
        (folder / name).touch()
    assert downloads.resolve("a[1].txt", folder) == [folder / "a[1].txt"]
    assert downloads.resolve("a*.txt", folder) == [folder / "a1.txt", folder / "a[1].txt"]


def test_a_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert downloads.resolve("model", tmp_path) == [tmp_path / "model"]


def test_missing_file_names_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.en-es.tsv").touch()
    with pytest.raises(SourceError) as caught:
        downloads.resolve("data/train.en-se.tsv", tmp_path)
    assert caught.value.place == str(tmp_path / "data")
    assert "'data/train.en-se.tsv'" in caught.value.problem
    assert caught.value.cure == "did you mean 'train.en-es.tsv'?"
    with pytest.raises(SourceError, match="did you mean 'data'[?]"):
        downloads.resolve("dat/deep/down/train.tsv", tmp_path)
    with pytest.raises(SourceError, match="nothing matches") as caught:
        downloads.resolve("data/*.xyz", tmp_path)
    assert caught.value.cure == "the folder contains: train.en-es.tsv"


@pytest.mark.parametrize("spec", ["", "a\0b", "~no-such-user-here/a", "x" * 5000])
def test_unusable_paths(spec: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        downloads.resolve(spec, tmp_path)


def test_cache_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert downloads.cache_dir() == cache
    monkeypatch.delenv("ROUNDTRIP_CACHE")
    assert downloads.cache_dir().name.lower() == "roundtrip"


# The form of a pypi spec


def test_parse_pypi() -> None:
    spec = downloads.parse_pypi(f"pypi:my_Words.es==1!2.0.post1+cpu/a/**/*.po#sha256={'AB' * 32}")
    assert spec == downloads.PypiSpec("my_Words.es", "1!2.0.post1+cpu", "a/**/*.po", "ab" * 32)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pypi:words==1.0/a.po", "sha256 of the wheel file is missing"),
        ("pypi:words==1.0/a.po#sha256=12", "64 hexadecimal"),
        (f"pypi:words==1.0/a.po#sha256={'g' * 64}", "64 hexadecimal"),
        (f"pypi:words/a.po#sha256={ZEROS}", "exact version"),
        (f"pypi:words>=1.0/a.po#sha256={ZEROS}", "name of a distribution"),
        (f"pypi:words==1.*/a.po#sha256={ZEROS}", "exact version"),
        (f"pypi:--index-url==1.0/a.po#sha256={ZEROS}", "name of a distribution"),
        (f"pypi:words==-r/a.po#sha256={ZEROS}", "exact version"),
        (f"pypi:words[extra]==1.0/a.po#sha256={ZEROS}", "name of a distribution"),
        (f"pypi:words @ file:==1.0/a.po#sha256={ZEROS}", "name of a distribution"),
        (f"pypi:words==1.0#sha256={ZEROS}", "relative path"),
        (f"pypi:words==1.0/a/#sha256={ZEROS}", "relative path"),
        *((f"pypi:words==1.0/{path}#sha256={ZEROS}", "relative path") for path in HOSTILE),
    ],
)
def test_bad_pypi_specs_show_the_form(spec: str, words: str) -> None:
    with pytest.raises(SourceError) as caught:
        downloads.parse_pypi(spec)
    assert caught.value.place == spec
    assert words in caught.value.problem
    assert downloads.PYPI_FORM in str(caught.value.cure)


@many
@given(st.text(), st.text(), st.one_of(st.text(), st.text("./\\*:aC\0\n", max_size=12)))
@example("a", "1", "../a")
@example("-r", "1", "a")
def test_what_is_parsed_is_harmless(name: str, version: str, path: str) -> None:
    try:
        spec = downloads.parse_pypi(f"pypi:{name}=={version}/{path}#sha256={ZEROS}")
    except SourceError:
        return
    for word in (spec.name, spec.version):
        assert word.isascii()
        assert word[0].isalnum()
        assert not set(word) & set(" \t\r\n/\\;@[]<>=,'\"$`|&")
    assert Path(os.path.normpath("/target/" + spec.path)).is_relative_to("/target")
    assert not set(spec.path) & set("\\\0\n")
    assert ".." not in spec.path.split("/")


# Fetching


def test_fetch_keeps_wheel_and_members(shelf: Shelf, wheel: Path, cache: Path) -> None:
    [path] = fetch(shelf, wheel, "words/data/es.po")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    target = cache / "files" / digest[:16]
    assert path == target / "words" / "data" / "es.po"
    assert {member: (target / member).read_text() for member in MEMBERS} == MEMBERS
    record = target.with_name(f"{target.name}.hashes.json")
    everything = {cache / "wheels" / digest / wheel.name, record, *(target / member for member in MEMBERS)}
    assert files_below(cache) == everything, "nothing else is left or written"


def test_a_cached_wheel_is_not_fetched_again(shelf: Shelf, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [first] = fetch(shelf, wheel, "words/data/es.po")
    before = first.stat()
    assert fetch(shelf, wheel, "words/data/es.po") == [first]
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    monkeypatch.setenv("ROUNDTRIP_OFFLINE", "1")
    [other] = downloads.resolve(spec_of(wheel, "words/data/de.po"), Path())
    assert other.read_text() == "hallo\n"
    assert shelf.asked == ["words==1.0"]


def test_offline_without_the_wheel(shelf: Shelf, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDTRIP_OFFLINE", "1")
    with pytest.raises(SourceError, match="not in the cache, and downloads are disabled"):
        downloads.resolve(spec_of(wheel, "words/data/es.po"), Path())
    assert shelf.asked == []


def test_a_damaged_cached_wheel_is_named_and_fetched_again(
    shelf: Shelf, wheel: Path, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = fetch(shelf, wheel, "words/data/es.po")
    path.unlink()
    [cached] = cache.glob("wheels/*/*.whl")
    cached.write_bytes(b"damaged")
    with monkeypatch.context() as patch, pytest.raises(SourceError, match="offline"):
        patch.setenv("ROUNDTRIP_OFFLINE", "1")
        downloads.resolve(spec_of(wheel, "words/data/es.po"), Path())
    assert fetch(shelf, wheel, "words/data/es.po") == [path]
    assert str(cached) in caplog.text
    assert cached.read_bytes() == wheel.read_bytes()
    assert len(shelf.asked) == 2


@pytest.mark.parametrize("text", ["ho", "", "holA\n"])
def test_a_damaged_member_is_written_again(
    text: str, shelf: Shelf, wheel: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [path] = fetch(shelf, wheel, "words/data/es.po")
    path.write_text(text)
    assert fetch(shelf, wheel, "words/data/es.po") == [path]
    assert path.read_text() == "hola\n"
    assert "words/data/es.po has" in caplog.text and "made again" in caplog.text
    assert shelf.asked == ["words==1.0"]


def test_a_missing_or_foreign_member_changes_nothing(shelf: Shelf, wheel: Path) -> None:
    before = [path.name for path in fetch(shelf, wheel, "words/data/*.po")]
    [folder] = {path.parent for path in fetch(shelf, wheel, "words/data/*.po")}
    (folder / "es.po").unlink()
    assert [path.name for path in fetch(shelf, wheel, "words/data/*.po")] == before
    (folder / "nl.po").write_text("hoi")
    assert [path.name for path in fetch(shelf, wheel, "words/data/*.po")] == before
    (folder / "more" / "nl.po").write_text("hoi")
    assert fetch(shelf, wheel, "words/data") == [folder]
    assert not (folder / "more" / "nl.po").exists()


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["a" * 300]])
def test_names_that_no_folder_can_hold(names: list[str], tmp_path: Path, shelf: Shelf) -> None:
    with pytest.raises(SourceError, match="archive is damaged"):
        fetch(shelf, make_wheel(tmp_path, dict.fromkeys(names, "text")), "a")


def test_wrong_hash_is_found_before_the_archive_is_opened(shelf: Shelf, tmp_path: Path, cache: Path) -> None:
    wheel = tmp_path / "words-1.0-py3-none-any.whl"
    wheel.write_bytes(b"not even an archive")
    shelf.wheel = wheel
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(SourceError) as caught:
        downloads.resolve(f"pypi:words==1.0/a.po#sha256={ZEROS}", Path())
    assert ZEROS in caught.value.problem
    assert found in caught.value.problem
    assert not files_below(cache)


def test_right_hash_of_a_broken_archive(shelf: Shelf, tmp_path: Path) -> None:
    wheel = tmp_path / "words-1.0-py3-none-any.whl"
    wheel.write_bytes(b"not an archive")
    with pytest.raises(SourceError, match="archive is damaged"):
        fetch(shelf, wheel, "a.po")


def test_pip_that_brings_nothing(shelf: Shelf, wheel: Path) -> None:
    with pytest.raises(SourceError, match="downloaded: none"):
        downloads.resolve(spec_of(wheel, "words/data/es.po"), Path())
    assert shelf.asked == ["words==1.0"]


def test_unusable_cache(shelf: Shelf, wheel: Path, cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.raises(SourceError, match="ROUNDTRIP_CACHE"):
        fetch(shelf, wheel, "words/data/es.po")


def test_two_processes_at_once(tmp_path: Path, wheel: Path, cache: Path) -> None:
    """One downloads, and does so until the other has begun to wait for it."""
    script = textwrap.dedent("""
        import shutil, sys, time
        from pathlib import Path
        from roundtrip.runtime import cached_folders, downloads

        wheel, spec, mine, other = sys.argv[1:]

        def download(name, version, folder):
            shutil.copy(wheel, folder)
            deadline = time.monotonic() + 60
            while not Path(other).exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            sys.stdout.write("downloaded ")

        downloads._pip_download = download
        cached_folders.logger.warning = lambda *_: Path(mine).touch()
        sys.stdout.write("".join(path.read_text() for path in downloads.resolve(spec, Path())))
    """)
    marks = [str(tmp_path / "one"), str(tmp_path / "two")]
    command = [sys.executable, "-W", "error", "-c", script, str(wheel), spec_of(wheel, "**/*.po")]
    running = [
        subprocess.Popen([*command, *order], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for order in (marks, marks[::-1])
    ]
    results = sorted(process.communicate(timeout=120) for process in running)
    assert results == [("downloaded hallo\nhola\nbonjour\n", ""), ("hallo\nhola\nbonjour\n", "")]
    assert len(list(filter(os.path.exists, marks))) == 1, "the other has waited"
    assert len(files_below(cache)) == 2 + len(MEMBERS)


# pip itself, without a network


@pytest.fixture
def real_pip(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.undo()
    yield


def test_pip_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, real_pip: None) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "pip.py").write_text("raise SystemExit('a stray file was run')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        downloads._pip_download("no-such-words", "1.0", tmp_path)
    assert caught.value.place == "no-such-words==1.0"
    assert "ERROR: No matching distribution found" in caught.value.problem


@pytest.mark.parametrize(
    ("stderr", "problem", "cure"),
    [
        ("/usr/bin/python: No module named pip\n", "No module named pip", "ensurepip"),
        (
            "WARNING: Retrying (...) after connection broken by 'NewConnectionError(...)'\n"
            "ERROR: No matching distribution found for words==1.0\n\n[notice] A new release of pip\n",
            "ERROR: No matching distribution found for words==1.0",
            "cannot be reached",
        ),
        (
            "ERROR: No matching distribution found\n",
            "ERROR: No matching distribution found",
            "check name and version",
        ),
        ("", "exit code 1", "check name and version"),
    ],
)
def test_cure_fits_what_pip_says(
    stderr: str, problem: str, cure: str, monkeypatch: pytest.MonkeyPatch, real_pip: None
) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:5] == [sys.executable, "-P", "-m", "pip", "download"]
        assert command[-1] == "words==1.0"
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SourceError) as caught:
        downloads._pip_download("words", "1.0", Path())
    assert caught.value.problem.endswith(problem)
    assert cure in str(caught.value.cure)


# Which members


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("words/data/*.po", ["words/data/de.po", "words/data/es.po"]),
        ("words/**/*.po", ["words/data/de.po", "words/data/es.po", "words/data/more/fr.po"]),
        ("words/data/**", ["words/data/de.po", "words/data/es.po", "words/data/more/fr.po"]),
        ("**/**/fr.po", ["words/data/more/fr.po"]),
        ("**/[e]s.po", ["words/data/es.po"]),
        ("*/*/e?.po", ["words/data/es.po"]),
        ("words/*.po", None),
    ],
)
def test_globs_over_members(path: str, names: list[str] | None, shelf: Shelf, wheel: Path, cache: Path) -> None:
    if names is None:
        with pytest.raises(SourceError, match="nothing matches"):
            fetch(shelf, wheel, path)
        return
    target = cache / "files" / hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
    assert fetch(shelf, wheel, path) == [target / name for name in names]


def test_a_member_with_a_star_in_its_name(shelf: Shelf, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {"a/*.po": "star", "a/b.po": "b"})
    assert [path.read_text() for path in fetch(shelf, wheel, "a/*.po")] == ["star"]


def test_missing_member_names_what_is_near(shelf: Shelf, wheel: Path) -> None:
    with pytest.raises(SourceError) as caught:
        fetch(shelf, wheel, "words/data/se.po")
    assert str(caught.value.place).endswith("words/data")
    assert "did you mean 'es.po'" in str(caught.value.cure)


# Hostile archives


def hostile_wheel(folder: Path, *infos: zipfile.ZipInfo, text: str = "out") -> Path:
    path = folder / "words-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info in infos:
            archive.writestr(info, text)
    return path


def raw_name(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("placeholder")
    info.filename = name  # the constructor would tidy it
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


@settings(many, max_examples=60)
@given(
    name=st.one_of(
        st.sampled_from(HOSTILE),
        st.text(min_size=1, max_size=20),
        st.lists(st.sampled_from(["..", ".", "", "a", "C:", "~", "a\\..", "\u2025"]), min_size=1).map("/".join),
    ).filter(lambda name: "\0" not in name and name.isprintable())
)
@example(name="../../../../../../etc/out")
@example(name="files/../../wheels/x.whl")
def test_no_member_is_written_outside(name: str, tmp_path: Path, shelf: Shelf) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as work, pytest.MonkeyPatch.context() as patch:
        cache = Path(work) / "deep" / "cache"
        patch.setenv("ROUNDTRIP_CACHE", str(cache))
        wheel = hostile_wheel(Path(work), raw_name(name))
        with suppress(SourceError):
            fetch(shelf, wheel, "**")
        target = cache / "files" / hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
        [cached] = cache.glob("wheels/*/*.whl")
        written = files_below(tmp_path) - {wheel, cached, target.with_name(f"{target.name}.hashes.json")}
        assert all(path.is_relative_to(target) for path in written)


@pytest.mark.parametrize("name", HOSTILE)
def test_leaving_members_are_named(name: str, tmp_path: Path, shelf: Shelf) -> None:
    with pytest.raises(SourceError, match="would be written outside of its folder"):
        fetch(shelf, hostile_wheel(tmp_path, raw_name("a/good.txt"), raw_name(name)), "**")
    assert not list(tmp_path.rglob("good.txt")), "nothing is written of an archive with a hostile member"


def test_a_link_on_the_way_is_not_followed(tmp_path: Path, shelf: Shelf, wheel: Path, cache: Path) -> None:
    (tmp_path / "outside").mkdir()
    target = cache / "files" / hashlib.sha256(wheel.read_bytes()).hexdigest()[:16]
    target.mkdir(parents=True)
    (target / "words").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "kept.txt").write_text("not of the cache")
    [path] = fetch(shelf, wheel, "words/data/es.po")
    assert path.read_text() == "hola\n"
    assert not (target / "words").is_symlink()
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR])
def test_links_and_devices_are_refused(kind: int, tmp_path: Path, shelf: Shelf, cache: Path) -> None:
    info = raw_name("a/link")
    info.external_attr = (kind | 0o777) << 16
    with pytest.raises(SourceError, match="not a file: 'a/link'"):
        fetch(shelf, hostile_wheel(tmp_path, info, text="/etc/passwd"), "a/link")
    assert not files_below(cache / "files")


def test_a_member_with_a_bomb_ratio(tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    small = make_wheel(tmp_path, {"zeros.txt": "\0" * 10**5}, "small-1.0-py3-none-any.whl")
    monkeypatch.setattr(downloads, "RATIO_FREE_BYTES", 10**5)
    assert fetch(shelf, small, "zeros.txt"), "too small to matter"
    lines = make_wheel(tmp_path, {"lines.txt": "a line of text\n" * 10**5}, "lines-1.0-py3-none-any.whl")
    assert fetch(shelf, lines, "lines.txt"), "as repetitive as text gets"
    bomb = make_wheel(tmp_path, {"zeros.txt": "\0" * 10**6})
    with pytest.raises(SourceError, match="grows more than 1000 times: 'zeros.txt'"):
        fetch(shelf, bomb, "*.txt")


def test_members_that_would_fill_the_disk(tmp_path: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, {"a.txt": "12345", "b.txt": "12345"})
    monkeypatch.setattr(downloads, "MAX_EXTRACTED_BYTES", 9)
    with pytest.raises(SourceError, match="10 bytes, the limit is 9"):
        fetch(shelf, wheel, "a.txt")


@pytest.mark.parametrize("declared", [10, 10**9])
def test_a_lying_header(declared: int, tmp_path: Path, shelf: Shelf, cache: Path) -> None:
    wheel = make_wheel(tmp_path, {"a.txt": "\0" * 10**6})
    wheel.write_bytes(wheel.read_bytes().replace((10**6).to_bytes(4, "little"), declared.to_bytes(4, "little")))
    with pytest.raises(SourceError, match="a member grows|archive is damaged"):
        fetch(shelf, wheel, "a.txt")
    assert not files_below(cache / "files")


def test_an_encrypted_member(tmp_path: Path, shelf: Shelf) -> None:
    wheel = make_wheel(tmp_path, {"a.txt": "text"})
    content = bytearray(wheel.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    wheel.write_bytes(content)
    with pytest.raises(SourceError, match="encrypted"):
        fetch(shelf, wheel, "a.txt")


# The real registry


@pytest.mark.slow
def test_a_real_wheel(tmp_path: Path, real_pip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDTRIP_CACHE", str(tmp_path / "cache"))
    downloads._pip_download("langcodes", "3.5.1", tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    spec = f"pypi:langcodes==3.5.1/langcodes/**/*.py#sha256={digest}"
    found = downloads.resolve(spec, tmp_path)
    assert found == sorted(found)
    assert "__init__.py" in {path.name for path in found}
    with monkeypatch.context() as patch:
        patch.setenv("ROUNDTRIP_OFFLINE", "1")
        assert downloads.resolve(spec, tmp_path) == found
    with pytest.raises(SourceError, match="wrong sha256"):
        downloads.resolve(f"pypi:langcodes==3.5.1/langcodes/__init__.py#sha256={ZEROS}", tmp_path)
    with pytest.raises(SourceError, match="No matching distribution"):
        downloads.resolve(f"pypi:langcodes==0.0.0.1/langcodes/__init__.py#sha256={ZEROS}", tmp_path)
