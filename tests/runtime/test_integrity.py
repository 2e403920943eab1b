"""Hashed JSON files: every flipped bit and every truncation is harmless or detected."""

import os
import time

import pytest

from roundtrip.runtime import integrity
from roundtrip.runtime.integrity import file_hash, read_hashed_json, write_hashed_json

DOCUMENT = {"alpha": 32, "dtype": "float32", "prompt": "Übersetze: \u2028", "nested": {"b": [1.5, None], "a": True}}


def test_what_was_written_is_read(tmp_path):
    write_hashed_json(tmp_path / "a.json", DOCUMENT)
    assert read_hashed_json(tmp_path / "a.json") == DOCUMENT


def test_every_flipped_bit_is_harmless_or_detected(tmp_path):
    path = tmp_path / "a.json"
    write_hashed_json(path, DOCUMENT)
    content, detected = path.read_bytes(), 0
    for position in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            assert read_hashed_json(path) == DOCUMENT
        except ValueError as error:
            assert "a.json" in str(error)
            detected += 1
    assert detected > 6 * len(content)


def test_every_truncation_is_detected(tmp_path):
    path = tmp_path / "a.json"
    write_hashed_json(path, DOCUMENT)
    content = path.read_bytes()
    for size in range(len(content) - 1):  # without the line feed at its end it is whole
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"a\.json"):
            read_hashed_json(path)


@pytest.mark.parametrize("text", ["[]", "null", "{}", "[" * 100_000, '{"sha256": 1}'])
def test_other_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json"):
        read_hashed_json(tmp_path / "a.json")


def test_a_file_is_hashed_again_only_when_it_has_changed(tmp_path, monkeypatch):
    path, calls = tmp_path / "a", []
    original = integrity.hashlib.file_digest
    monkeypatch.setattr(integrity.hashlib, "file_digest", lambda *a: calls.append(1) or original(*a))
    path.write_bytes(b"one")
    first = file_hash(path)
    assert file_hash(path) == first and len(calls) == 2, "it is too young for its times to show a change"
    monkeypatch.setattr(integrity, "_SETTLED_NS", 0)
    assert file_hash(path) == file_hash(path) == first and len(calls) == 3
    status = path.stat()
    time.sleep(0.02)
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the time of a change of a file stays
    assert file_hash(path) != first
    path.unlink()
    path.write_bytes(b"one")
    assert file_hash(path) == first
