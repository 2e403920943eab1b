"""The folder or hub id of a recipe's model, and files that are refused before they are opened."""

from __future__ import annotations

from pathlib import Path

from roundtrip.models.gguf import convert
from roundtrip.recipe.schema import Model
from roundtrip.runtime.downloads import cache_dir, is_hub_id, resolve
from roundtrip.runtime.errors import ModelError, SourceError

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
_PICKLE = "a pickle, which can execute arbitrary code when it is loaded"
_CONVERT = (
    "take the safetensors of the same model; if you trust its author, make them: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
)


def locate_model(spec: Model, folder: Path) -> str:
    """Return the folder or hub id that a recipe's model names; a GGUF file is converted first."""
    assert spec.path is not None, "a model from scratch is created before it is loaded"
    path = spec.path
    if is_hub_id(path, folder):
        return path
    try:
        file, *others = resolve(path, folder)
    except SourceError as error:
        raise SourceError(error.problem, place=f"model.path ({error.place})", cure=error.cure) from error
    if others:
        problem = f"'{path}' matches {1 + len(others)} files"
        raise ModelError(problem, place="model.path", cure="name one file or folder")
    if file.is_dir():
        _refuse_unloadable(file)
        return str(file)
    if file.suffix in _PICKLES:
        raise ModelError(f"'{path}' is {_PICKLE}", place="model.path", cure=_CONVERT)
    if file.suffix != ".gguf":
        cure = "name the folder that holds config.json, a .gguf file, or a hub id such as 'org/model'"
        raise ModelError(f"'{path}' is neither a folder nor a GGUF file", place="model.path", cure=cure)
    return str(convert(file, cache_dir()))


def _refuse_unloadable(folder: Path) -> None:
    """Refuse a folder that is no model, or has its weights only as pickles."""
    place = f"model.path ({folder})"
    if (folder / "adapter_config.json").exists():  # of which transformers would load the base that it names
        cure = "name its base here, and the folder in adapter.init"
        raise ModelError("this is an adapter, not a model", place=place, cure=cure)
    if not (folder / "config.json").exists():
        raise ModelError("it has no config.json", place=place, cure="name the folder of a model, or a .gguf file")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles and not any(folder.glob("*.safetensors")):
        raise ModelError(f"{pickles[0]} is {_PICKLE}", place=place, cure=_CONVERT)
