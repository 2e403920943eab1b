"""The losses of two small runs are those that were recorded; recording refuses what is not committed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from roundtrip.runtime.errors import RunError
from tests.tools.golden import PATH, RUNS, TOLERANCE, environment, losses, refuse_dirty


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_the_recorded_ones(tmp_path: Path, name: str) -> None:
    recorded = json.loads(PATH.read_text())
    found = losses(tmp_path, name)
    for one, other in zip(found, recorded[name], strict=True):
        for key in ("direction", "step", "labels", "tokens"):
            assert one[key] == other[key], "the same rows in the same order"
        for key in ("loss", "grad_norm"):
            assert one[key] == pytest.approx(other[key], rel=TOLERANCE), (one["direction"], one["step"], key)
    if recorded["environment"] == environment():
        assert found == recorded[name], "to the last bit where versions and processor are the same"


def test_recording_refuses_a_tree_with_changes(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "one")
    assert len(refuse_dirty(tmp_path)) == 40
    (tmp_path / "a").write_text("2")
    with pytest.raises(RunError, match=r"the tree has changes: a(.|\n)*commit them first"):
        refuse_dirty(tmp_path)
