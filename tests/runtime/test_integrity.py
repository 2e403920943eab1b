"""Hashed JSON files: every flipped bit and every truncation is harmless or detected."""

import pytest

from roundtrip.runtime.integrity import read_hashed_json, write_hashed_json

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
