"""Each method against its formula, on a real small model: what is added, what is learnt, what is saved."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.dora import DoraLinearLayer
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from roundtrip.models import adapters, base_model, direction_model, pissa_olora
from roundtrip.models.optimizer import Optimizer, lr_factor
from roundtrip.models.pissa_olora import ResidualBase
from roundtrip.recipe.schema import Adapter, Model, Train
from roundtrip.runtime.errors import ModelError

METHODS = [name for name in get_args(Adapter.model_fields["method"].annotation) if name != "full"]
IDS = torch.randint(5, 250, (3, 17), generator=torch.Generator().manual_seed(1))


def fresh(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").requires_grad_(False).eval()


def added(
    folder: Path, settings: Adapter, name: str = "en-es", kept: Path | None = None
) -> tuple[Any, ResidualBase | None]:
    """Return a model with one fresh adapter, and what that took out of it."""
    model = fresh(folder)
    before = pissa_olora.linear_weights(model)
    model = adapters.add_adapters(model, {name: settings}, 1)
    return model, pissa_olora.subtract_from_base(
        model, name, before, kept
    ) if settings.method in pissa_olora.METHODS else None


def adapted(folder: Path, *, residual: bool = True, name: str = "en-es", **settings: Any) -> Any:
    """Return a model with one adapter, moved away from its start at random."""
    model, _ = added(folder, Adapter(**({"rank": 4} | settings)), name)
    adapters.activate(model, name, train=False)
    if residual:
        random = torch.Generator().manual_seed(5)
        for parameter in adapters.parameters(model, name).values():
            parameter.data += torch.randn(parameter.shape, generator=random) * 0.05
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def first_layer(model: Any) -> LoraLayer:
    return next(layer for layer in model.modules() if isinstance(layer, LoraLayer))


@pytest.mark.parametrize(("method", "scale"), [("lora", 32 / 4), ("rslora", 32 / 2)])
def test_lora_adds_its_product_by_its_own_scale(model_folder: Path, method: str, scale: float) -> None:
    layer = first_layer(adapted(model_folder, method=method, alpha=32.0))
    a, b = layer.lora_A["en-es"].weight, layer.lora_B["en-es"].weight
    inputs = torch.randn(6, a.shape[1])
    expected = inputs @ layer.get_base_layer().weight.T + scale * (inputs @ a.T @ b.T)
    assert torch.allclose(layer(inputs), expected, atol=1e-5)


@pytest.mark.parametrize(("method", "scale"), [("dora", 32 / 4), ("rsdora", 32 / 2)])
def test_dora_is_magnitude_times_direction(model_folder: Path, method: str, scale: float) -> None:
    layer = first_layer(adapted(model_folder, method=method, alpha=32.0))
    a, b = layer.lora_A["en-es"].weight, layer.lora_B["en-es"].weight
    magnitude = layer.lora_magnitude_vector["en-es"].weight
    direction = layer.get_base_layer().weight + scale * b @ a
    weight = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    inputs = torch.randn(6, a.shape[1])
    assert torch.allclose(layer(inputs), inputs @ weight.T, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_as_the_base(model_folder: Path, method: str) -> None:
    model = adapted(model_folder, method=method, residual=False)
    assert torch.allclose(logits(model), logits(fresh(model_folder)), atol=1e-4)


def shifted(model: Any) -> None:
    for parameter in adapters.parameters(model, "en-es").values():
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.05


def write(merged_copy: Any, model: Any, residual: ResidualBase | None, *, adapted: bool = True) -> None:
    name = "en-es" if adapted else None
    if residual is None:
        adapters.write_merged(merged_copy, model, name)
    else:
        pissa_olora.write_merged_residual(merged_copy, model, name, residual)


@pytest.mark.parametrize("method", METHODS)
def test_merged_weights_are_what_the_adapter_computes(model_folder: Path, method: Any) -> None:
    model, residual = added(model_folder, Adapter(method=method, rank=4))
    shifted(model)
    adapters.activate(model, "en-es", train=False)
    merged_copy = fresh(model_folder)
    write(merged_copy, model, residual)
    assert torch.allclose(logits(merged_copy), logits(model), atol=1e-4)
    assert not torch.allclose(logits(merged_copy), logits(fresh(model_folder)), atol=1e-2)
    write(merged_copy, model, residual, adapted=False)
    assert torch.equal(logits(merged_copy), logits(fresh(model_folder))), "the base is the one that was published"
    write(merged_copy, model, residual)
    theirs = model.merge_and_unload()
    assert torch.allclose(logits(theirs), logits(merged_copy), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_works_on_the_base_as_published(
    model_folder: Path, tmp_path: Path, method: Any, dtype: torch.dtype
) -> None:
    """By PEFT alone, whatever the method took out of the base; and back into an adapter of ours, to the last bit."""
    settings = Adapter(method=method, rank=4)

    def make() -> tuple[Any, ResidualBase | None]:
        model = fresh(model_folder).to(dtype)
        before = pissa_olora.linear_weights(model)
        model = adapters.add_adapters(model, {"en-es": settings}, 1)
        return model, pissa_olora.subtract_from_base(
            model, "en-es", before, None
        ) if method in pissa_olora.METHODS else None

    model, residual = make()
    initial_adapter = None if residual is None else residual.initial_adapter
    shifted(model)
    adapters.export(model, "en-es", tmp_path, str(model_folder), initial_adapter)
    merged_copy = fresh(model_folder).to(dtype)
    write(merged_copy, model, residual)
    exact = logits(merged_copy)
    alone = PeftModel.from_pretrained(fresh(model_folder).to(dtype), tmp_path, autocast_adapter_dtype=False).eval()
    if dtype == torch.float32:
        assert torch.allclose(logits(alone), exact, atol=1e-4)
    else:
        # Each linear layer rounds its weight and its output, independently of the others: errors add as their squares.
        num_roundings = 2 * len(pissa_olora.linear_weights(merged_copy))
        limit = torch.finfo(dtype).eps / 2 * num_roundings**0.5
        assert (logits(alone) - exact).abs().mean() < limit * exact.abs().mean()
    other, other_moved = make()
    adapters.load(other, "en-es", adapters.read(tmp_path), initial_adapter)
    write(merged_copy, other, other_moved)
    assert torch.equal(logits(merged_copy), exact)
    # As it is loaded for use: what is scored in the run is what is used later, to the last bit.
    for_use = adapters.add_adapters(fresh(model_folder).to(dtype), {"en-es": adapters.as_exported(settings)}, 9)
    adapters.load(for_use, "en-es", adapters.read(tmp_path))
    adapters.write_merged(merged_copy, for_use, "en-es")
    assert torch.equal(logits(merged_copy), exact)


def test_the_start_of_an_adapter_is_kept_for_machines_that_find_another(model_folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "start" / "en-es.safetensors"
    first, residual = added(model_folder, Adapter(method="pissa", rank=4), kept=kept)
    assert residual is not None
    # Another decomposition of the same weights: the sign of a pair of vectors is free.
    turned = {key: -value for key, value in residual.initial_adapter.items()}
    save_file(turned, kept)
    second, again = added(model_folder, Adapter(method="pissa", rank=4), kept=kept)
    assert again is not None and all(torch.equal(turned[key], value) for key, value in again.initial_adapter.items())
    for model in (first, second):
        adapters.activate(model, "en-es", train=False)
    assert torch.allclose(logits(first), logits(second), atol=1e-4)
    kept.write_bytes(b"broken")
    with pytest.raises(ModelError, match="the initial adapter of en-es cannot be read"):
        added(model_folder, Adapter(method="pissa", rank=4), kept=kept)


def test_two_directions_of_other_kinds_share_a_base(model_folder: Path) -> None:
    kinds = {
        "en-es": Adapter(rank=8, targets=("q_proj",)),
        "es-en": Adapter(method="dora", rank=2, targets=r".*layers\.1\..*(o_proj|up_proj)"),
    }
    model = adapters.add_adapters(fresh(model_folder), kinds, 1)
    for name in kinds:
        for parameter in adapters.parameters(model, name).values():
            parameter.data += 0.03
    assert not any(".layers.0." in key for key in adapters.parameters(model, "es-en"))
    assert all(".q_proj." in key for key in adapters.parameters(model, "en-es"))
    merged_copy = fresh(model_folder)
    for name in kinds:
        adapters.activate(model, name, train=False)
        adapters.write_merged(merged_copy, model, name)
        assert torch.allclose(logits(merged_copy), logits(model), atol=1e-4)
    adapters.write_merged(merged_copy, model, None)
    assert torch.equal(logits(merged_copy), logits(fresh(model_folder)))


@pytest.mark.parametrize(
    ("targets", "number"), [("all-linear", 14), (("q_proj", "v_proj"), 4), (r".*layers\.1\..*_proj", 7)]
)
def test_targets_are_names_a_pattern_or_all(model_folder: Path, targets: Any, number: int) -> None:
    model = adapted(model_folder, targets=targets)
    assert sum(isinstance(layer, LoraLayer) for layer in model.modules()) == number


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(\w+\.?)+!", "more than 1 seconds"),
        (r"((.*)*)*x\.y", "more than 1 seconds"),
        ("(" * 5000 + "a" + ")" * 5000, "nested too deeply"),
        ("(", "unterminated subpattern"),
        ("*", "nothing to repeat"),
        (r"a{99999999999999999999}", "repetition number is too large"),
    ],
)
def test_a_pattern_that_does_not_end_is_refused(model_folder: Path, pattern: str, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match=words) as caught:
        adapted(model_folder, targets=pattern)
    assert caught.value.place == "adapter.targets (en-es)" and time.monotonic() - start < 5


def test_targets_that_are_not_there_are_named(model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter\.targets \(en-es\)"):
        adapted(model_folder, targets=("no_such_layer",))


@pytest.mark.gpu
def test_offloading_gives_the_same_dora(model_folder: Path) -> None:
    plain, offloaded = (adapted(model_folder, method="dora", ephemeral_gpu_offload=flag) for flag in (False, True))
    assert first_layer(offloaded).ephemeral_gpu_offload and not first_layer(plain).ephemeral_gpu_offload
    assert torch.allclose(logits(plain), logits(offloaded), atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_offloading_without_a_gpu_is_refused(model_folder: Path) -> None:
    with pytest.raises(ModelError, match="initializing DoRA on a GPU requires a CUDA device"):
        adapted(model_folder, method="dora", ephemeral_gpu_offload=True)
    for_use = adapters.as_exported(Adapter(method="dora", ephemeral_gpu_offload=True))
    assert adapters.add_adapters(fresh(model_folder), {"en-es": for_use}, 1), "what was trained with it is used without"


class OneDevice(TorchFunctionMode):
    """Tensors that are sent to a GPU stay where they are: PEFT names the device itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to and "cuda" in args:
            return args[0]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("offload", [False, True])
def test_offloading_makes_adapters_while_the_base_is_in_host_memory(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: bool
) -> None:
    """The device "meta" stands for the GPU here."""
    devices: list[str] = []
    original = DoraLinearLayer.update_layer

    def spy(self: Any, *, base_layer: Any, **arguments: Any) -> None:
        devices.append(base_layer.weight.device.type)
        original(self, base_layer=base_layer, **arguments)

    monkeypatch.setattr(DoraLinearLayer, "update_layer", spy)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    spec = Model(path=str(model_folder), dtype="float32", device="meta")
    settings = Adapter(method="dora", rank=2, ephemeral_gpu_offload=offload)
    with OneDevice():
        loaded = direction_model.load({"en-es": spec}, {"en-es": settings}, tmp_path, one_base=True, seed=1)["en-es"]
    assert devices == ["cpu" if offload else "meta"] * 14
    for part in (loaded.model, loaded.merged_copy):
        assert part is not None and {parameter.device.type for parameter in part.parameters()} == {"meta"}


def test_an_adapter_starts_from_an_earlier_one(model_folder: Path, tmp_path: Path) -> None:
    earlier = adapted(model_folder, rank=4)
    adapters.export(earlier, "en-es", tmp_path, str(model_folder))
    model = adapted(model_folder, rank=4, residual=False, name="es-en")
    adapters.init_from_folder(model, "es-en", Adapter(rank=4), tmp_path)
    assert torch.equal(logits(model), logits(earlier))


def test_ranks_and_alphas_by_pattern_are_those_of_peft(model_folder: Path, tmp_path: Path) -> None:
    """An adapter of PEFT with other ranks and scales for some layers: as it is, merged, and exported again."""
    targets = ["q_proj", "v_proj", "up_proj"]
    patterns = {"rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.up_proj": 2}, "alpha_pattern": {"v_proj": 64}}
    config = LoraConfig(r=4, lora_alpha=32, target_modules=targets, init_lora_weights=False, **patterns)
    theirs = get_peft_model(fresh(model_folder), config)
    theirs.save_pretrained(tmp_path / "theirs")
    settings = Adapter(rank=4, alpha=32, targets=tuple(targets), init="theirs")
    spec = Model(path=str(model_folder), dtype="float32")
    loaded = direction_model.load({"en-es": spec}, {"en-es": settings}, tmp_path)["en-es"]
    expected = logits(theirs)
    adapters.activate(loaded.model, "en-es", train=False)
    assert torch.allclose(logits(loaded.model), expected, atol=1e-5)
    assert not torch.allclose(logits(fresh(model_folder)), expected, atol=1e-2)
    with loaded.generating() as merged:
        assert torch.allclose(logits(merged), expected, atol=1e-4)
    loaded.export(tmp_path / "ours")
    again = PeftModel.from_pretrained(fresh(model_folder), tmp_path / "ours")
    assert torch.allclose(logits(again), expected, atol=1e-5)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    "value", [[8], "q_proj", {"q_proj": "8"}, {"q_proj": 0}, {"q_proj": -3}, {"(a+)+": 8}, {"a*": 8}]
)
def test_patterns_of_another_form_are_refused(model_folder: Path, tmp_path: Path, key: str, value: Any) -> None:
    adapters.export(adapted(model_folder, rank=4), "en-es", tmp_path, str(model_folder))
    changed_config(tmp_path, **{key: value})
    with pytest.raises(ModelError, match=f"its {key} "):
        adapters.init_from_folder(None, "en-es", Adapter(rank=4), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 8}, "its r is 4, the recipe's 8"),
        ({"alpha": 16.0}, "its lora_alpha is 32.0, the recipe's 16.0"),
        ({"method": "dora"}, "its use_dora is False, the recipe's True"),
        ({"method": "rslora"}, "its use_rslora is False, the recipe's True"),
        ({"targets": ("q_proj",)}, "trained on another base or other targets"),
    ],
)
def test_an_earlier_adapter_of_another_kind_is_refused(
    model_folder: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    adapters.export(adapted(model_folder, rank=4), "en-es", tmp_path, str(model_folder))
    wanted = Adapter(**({"rank": 4} | settings))
    model = adapters.add_adapters(fresh(model_folder), {"en-es": wanted}, 1)
    with pytest.raises(ModelError, match=message):
        adapters.init_from_folder(model, "en-es", wanted, tmp_path)


def changed_config(folder: Path, **values: Any) -> None:
    path = folder / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize("key", sorted({*LoraConfig().to_dict(), "of_a_later_version"} - adapters._HONOURED))
def test_settings_of_an_adapter_that_are_not_computed_are_refused(model_folder: Path, tmp_path: Path, key: str) -> None:
    """Whatever PEFT has, or will have: what is not known to be computed alike is named."""
    adapters.export(adapted(model_folder, rank=4), "en-es", tmp_path, str(model_folder))
    for neutral in (None, False, [], {}):
        changed_config(tmp_path, **{key: neutral})
        adapters.read_config(tmp_path)
    for value in (True, {"q_proj": 8}, ["lm_head"], 3):
        changed_config(tmp_path, **{key: value})
        with pytest.raises(ModelError, match=rf"its {key} is .* which is not supported(.|\n)*without {key}"):
            adapters.init_from_folder(None, "en-es", Adapter(rank=4), tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("r", value) for value in (None, "4", 4.0, True, 0, -1, 10**30, [4])),
        *(("lora_alpha", value) for value in (None, "32", True, float("nan"), float("inf"), 10**400)),
        *((key, value) for key in ("use_dora", "use_rslora") for value in ("yes", 1, [])),
        *(("target_modules", value) for value in (3, [], [3], {"q_proj": 1})),
        *(("init_lora_weights", value) for value in ("pissa", "pissa_niter_4", "olora", "loftq", "eva", "x", {})),
        *(("bias", value) for value in ("all", "lora_only", 3)),
        *(("base_model_name_or_path", value) for value in (3, ["a"])),
        *(("peft_type", value) for value in (None, "IA3", 3)),
    ],
)
def test_settings_of_an_adapter_of_a_wrong_type_are_refused(
    model_folder: Path, tmp_path: Path, key: str, value: Any
) -> None:
    adapters.export(adapted(model_folder, rank=4), "en-es", tmp_path, str(model_folder))
    changed_config(tmp_path, **{key: value})
    with pytest.raises(ModelError, match=f"its {key} is"):
        adapters.init_from_folder(None, "en-es", Adapter(rank=4), tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "3", "{", '{"r": 1e', "\x00", '{"a":' * 10_000, '"\\ud800"'])
def test_a_broken_configuration_of_an_adapter_is_refused(model_folder: Path, tmp_path: Path, content: str) -> None:
    adapters.export(adapted(model_folder, rank=4), "en-es", tmp_path, str(model_folder))
    (tmp_path / adapters.CONFIG).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=adapters.CONFIG):
        adapters.init_from_folder(None, "en-es", Adapter(rank=4), tmp_path)


@pytest.mark.parametrize("damage", ["cut", "nan", "inf", "fifo", "none", "folder"])
def test_weights_of_an_adapter_are_whole_and_finite(model_folder: Path, tmp_path: Path, damage: str) -> None:
    model = adapted(model_folder, rank=4)
    adapters.export(model, "en-es", tmp_path, str(model_folder))
    path = tmp_path / adapters.WEIGHTS
    tensors = load_file(path)
    path.unlink()
    if damage in {"nan", "inf"}:
        name = sorted(tensors)[5]
        tensors[name][0, 0] = float(damage)
        save_file(tensors, path)
    elif damage == "cut":
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:-4])
    elif damage != "none":
        os.mkfifo(path) if damage == "fifo" else path.mkdir()
    reading: list[Callable[[], Any]] = [
        lambda: adapters.read(tmp_path),
        lambda: adapters.init_from_folder(model, "en-es", Adapter(rank=4), tmp_path),
    ]
    for read in reading:
        with pytest.raises(
            ModelError, match=f"'{name}' are not finite" if damage in {"nan", "inf"} else "adapter_model"
        ):
            read()


def test_an_initial_adapter_that_is_not_finite_is_refused(model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "en-es-start.safetensors"
    base = fresh(model_folder)
    before = pissa_olora.linear_weights(base)
    model = adapters.add_adapters(base, {"en-es": Adapter(method="olora", rank=4)}, 1)
    pissa_olora.subtract_from_base(model, "en-es", before, path)
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ModelError, match="initial adapter of en-es cannot be read: 1 of the") as caught:
        pissa_olora.subtract_from_base(model, "en-es", before, path)
    assert caught.value.place == str(path)


def test_an_adapter_for_a_deeper_base_is_refused(model_folder: Path, tmp_path: Path) -> None:
    """PEFT would load it and leave the layers above unadapted, without a word."""
    config = fresh(model_folder).config
    config.num_hidden_layers = 3
    deeper = AutoModelForCausalLM.from_config(config)
    adapters.export(adapted(model_folder, rank=4), "en-es", tmp_path, str(model_folder))
    model = adapters.add_adapters(deeper, {"en-es": Adapter(rank=4)}, 1)
    with pytest.raises(ModelError, match="another base"):
        adapters.init_from_folder(model, "en-es", Adapter(rank=4), tmp_path)


def test_moving_methods_keep_the_sum_and_change_the_base(model_folder: Path) -> None:
    """Why they are refused on a base that the other direction shares."""
    before = base_model.weights_hash(fresh(model_folder))
    for method in METHODS:
        model = adapted(model_folder, method=method, residual=False)
        assert (base_model.weights_hash(model) != before) == (method in pissa_olora.METHODS), method


def stepped(model: Any, adapter: Adapter, number: int, optimizer: Optimizer | None = None) -> Optimizer:
    """Take steps with gradients of one, which in AdamW move each weight by the rate itself."""
    own = adapters.parameters(model, "en-es")
    train = Train(lr=1e-3, lr_warmup_steps=2)
    optimizer = optimizer or Optimizer(own, train, 10, adapter)
    for _ in range(number):
        for parameter in own.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(1.0)
    return optimizer


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_loraplus_moves_b_by_its_ratio_in_the_optimizer_that_steps(model_folder: Path, method: Any) -> None:
    adapter = Adapter(method=method, rank=4, loraplus_lr_ratio=16.0)
    model = adapted(model_folder, method=method)
    own = adapters.parameters(model, "en-es")
    saved: dict[str, torch.Tensor] = {}
    optimizer: Optimizer | None = None
    for number in range(6):
        before = {name: parameter.detach().clone() for name, parameter in own.items()}
        if number == 3:  # a resume in between changes nothing
            assert optimizer is not None
            saved = {key: value.clone() for key, value in optimizer.state().items()}
            optimizer = Optimizer(own, optimizer.settings, 10, adapter)
            optimizer.restore(saved, 3)
        optimizer = stepped(model, adapter, 1, optimizer)
        rate = 1e-3 * lr_factor(optimizer.settings, number, 10)
        for name, parameter in own.items():
            residual = float((before[name] - parameter.detach()).abs().mean())
            wanted = rate * (16.0 if ".lora_B." in name else 1.0)
            assert math.isclose(residual, wanted, rel_tol=2e-2), (number, name)


def test_vectors_do_not_decay(model_folder: Path) -> None:
    own = adapters.parameters(adapted(model_folder, method="dora"), "en-es")
    before = {name: parameter.detach().clone() for name, parameter in own.items()}
    optimizer = Optimizer(own, Train(lr=1e-1, weight_decay=0.5, lr_warmup_steps=0), 10)
    optimizer.step(1.0)  # no gradients at all
    for name, parameter in own.items():
        assert torch.equal(before[name], parameter) == (parameter.ndim == 1), name


def test_the_saved_settings_are_those_of_the_method(model_folder: Path, tmp_path: Path) -> None:
    adapters.export(adapted(model_folder, method="rsdora", rank=4), "en-es", tmp_path, "org/model")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"], config["r"]) == (True, True, 4)
    assert config["base_model_name_or_path"] == "org/model" and config["inference_mode"]


@pytest.mark.parametrize("method", METHODS)
def test_layers_answer_in_the_precision_of_the_base(model_folder: Path, method: Any) -> None:
    """FlashAttention takes no float32, which DoRA of higher precision than its base would hand it."""
    model = fresh(model_folder).to(torch.bfloat16)
    model = adapters.add_adapters(model, {"en-es": Adapter(method=method, rank=4)}, 1)
    own = adapters.parameters(model, "en-es").values()
    assert {p.dtype for p in own} == {torch.bfloat16}
    seen = []
    for layer in (layer for layer in model.modules() if isinstance(layer, LoraLayer)):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for train in (False, True):
        adapters.activate(model, "en-es", train=train)
        model(IDS)
    assert len(seen) == 28 and set(seen) == {torch.bfloat16}
