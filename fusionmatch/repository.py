# Copyright 2026 The FusionMatch team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Folders and Hub repositories that models are read from: what is fetched of them, what is refused, and what an error of
the Hub means.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from safetensors import SafetensorError, safe_open

from .configuration_fusionmatch import FusionMatchConfig


CONFIG_FILE, ADAPTER_FILE, FINGERPRINT_FILE = "config.json", "adapter_config.json", "fusionmatch_base.json"
WEIGHTS_FILE, ADAPTER_WEIGHTS_FILE = "model.safetensors", "adapter_model.safetensors"
# Weights in more than one file. Beside one that holds all they are left over, and transformers does not look at them.
SHARDS_PATTERNS = ("model-*-of-*.safetensors", "model.safetensors.index.json")
# What loading reads; of a Hub repository nothing else is fetched, so neither code nor pickles are.
SETTINGS_PATTERNS = (
    *(CONFIG_FILE, ADAPTER_FILE, FINGERPRINT_FILE, "model*.safetensors.index.json"),
    *("processor_config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model"),
    # Vocabularies of single families: PhoBERT, LUKE, Marian, ...
    *("bpe.codes", "byte_maps.json", "dict.txt", "emoji.json", "entity_vocab.json", "normalizer.json"),
    *("prophetnet.tokenizer", "*.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json"),
    *("word_pronunciation.json", "word_shape.json"),
    "calibration.json",
)
WEIGHTS_PATTERNS = ("model*.safetensors", ADAPTER_WEIGHTS_FILE)
# Arguments of `from_pretrained` that say where on the Hub, and how it is fetched.
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download")

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
# The core files, which the Hub may carry beside the weights.
_OUR_CODE = re.compile(r"(configuration|modeling|processing)_fusionmatch\w*\.FusionMatch\w+")
# Entries that are read here or in loading, and what they have to be.
_KINDS = {
    CONFIG_FILE: {"model_type": str | None, "architectures": list | None},
    ADAPTER_FILE: {"base_model_name_or_path": str | None, "revision": str | None, "auto_mapping": dict | None},
    FINGERPRINT_FILE: {"fingerprint": str, "dtype": str, "settings": dict | None},
}
_DEEPEST = 50
_OUR_MODELS = ("FusionMatchModel", "FusionMatchForImageTextRetrieval")


class UnsafeFolderError(ValueError):
    """A folder that is neither read nor pushed: it is not whole, or it could run code or reach elsewhere."""


def fetch(name_or_path: str | Path, patterns: Sequence[str], **hub: Any) -> Path:
    """
    The folder of a checkpoint or adapter: itself, or for a Hub name the folder of the cache that its files were
    fetched into, all of one commit.

    Args:
        name_or_path (`str` or `Path`):
            Folder or Hub name.
        patterns (`Sequence[str]`):
            Which files of a repository, at its root, are fetched.
        hub:
            Of [`HUB_ARGUMENTS`].

    Raises:
        `FileNotFoundError`: there is no such folder, and it is no Hub name.
        `OSError`: the repository cannot be read; the message says why and what to do.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    with worded_hub_errors(str(name_or_path), reading=True):
        return Path(
            snapshot_download(str(name_or_path), allow_patterns=list(patterns), ignore_patterns=["*/*"], **hub)
        )


@contextmanager
def worded_hub_errors(repo: str, *, reading: bool = False) -> Iterator[None]:
    """
    Turns what goes wrong between here and a Hub repository into one line that says what to do about it.

    Args:
        repo (`str`):
            Name of the repository, or what was taken for one.
        reading (`bool`, *optional*, defaults to `False`):
            Whether it is only read from, so that what the token lacks is no right to write.

    Raises:
        `FileNotFoundError`: `repo` is no name that the Hub could have.
        `OSError`: anything that the Hub or the network refused.
    """
    try:
        yield
    except HFValidationError as error:
        raise FileNotFoundError(f"There is no folder {repo}, and it is no Hub name (`user/name`).") from error
    except (HTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError, LocalTokenNotFoundError) as error:
        raise OSError(_words(error, repo, reading)) from error
    except (RuntimeError, XetDownloadError) as error:
        # What went wrong with a large file, which is often the cause of this one.
        raise OSError(_words(error.__cause__ or error, repo, reading)) from error


def _words(error: BaseException, repo: str, reading: bool) -> str:
    # What made the cache the last resort says more than that the cache has nothing.
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, (HTTPError, OfflineModeIsEnabled)):
        error = error.__cause__
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, LocalTokenNotFoundError):
        return "There is no token for the Hub: log in with `hf auth login`, or set HF_TOKEN, or pass `--token`."
    if isinstance(error, (OfflineModeIsEnabled, LocalEntryNotFoundError)):
        return (
            f"There is no folder {repo}, the cache does not hold all of a repository of that name, and the Hub is not "
            "asked (HF_HUB_OFFLINE or `local_files_only`). Name a folder, or fetch it once with the Hub in reach."
        )
    if not isinstance(error, HfHubHTTPError):
        return (
            f"The Hub ({constants.ENDPOINT}) could not be reached for {repo} ({error or type(error).__name__}). Look "
            "at the network and start the same again: what arrived is kept."
        )
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated. Ask for access at {page}, and use a token of the account that was let in (HF_TOKEN)."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no such revision. {page}/tree/main lists its branches and tags."
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return (
            f"The Hub does not know the token (401) that {repo} was asked for with. Log in anew with `hf auth login`, "
            "or set HF_TOKEN, or pass `--token`."
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no folder {repo} and no such repository on the Hub ({status}), or it is private and the token "
            "may not see it. Look at the name; log in with `hf auth login`, or set HF_TOKEN."
        )
    if isinstance(error, DisabledRepoError):
        return f"The Hub has disabled {repo} ({status}), for everybody. {page} may say why; use another repository."
    if status == 403 and reading:
        return (
            f"The token may not read {repo} (403). Give it the right to read there ({constants.ENDPOINT}/settings/"
            "tokens), or use another one (HF_TOKEN)."
        )
    if status == 403:
        return (
            f"The token may not write to {repo} (403). Use one with the right to write there (HF_TOKEN or `--token`), "
            "or a name of your own."
        )
    if status in (409, 412):
        return (
            f"Somebody else changed {repo} in the meantime ({status}), and nothing of this push is to be seen there. "
            "Look at what is new, then start the same command again."
        )
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        return (
            f"The Hub answers {repo} no more for now, there were too many requests (429). Wait "
            f"{f'{wait} seconds' if wait else 'some minutes'} and start the same again."
        )
    if status >= 500:
        return f"The Hub has troubles of its own ({status}) with {repo}. Start the same again later."
    return f"The Hub refused what {repo} was asked ({status}): {error.server_message or 'it does not say why'}."


def check_settings(folder: str | Path) -> None:
    """
    Checks the settings of a checkpoint or adapter before anything is made of them.

    Raises:
        `FileNotFoundError`: the folder has neither a checkpoint nor an adapter.
        `ValueError`: it is the checkpoint of another model.
        [`UnsafeFolderError`]: a file is not JSON or has an entry of a kind that it cannot have, names code that is not
            this library's, or files elsewhere.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (CONFIG_FILE, ADAPTER_FILE)):
        raise FileNotFoundError(
            f"{folder} has neither `{CONFIG_FILE}` (a checkpoint) nor `{ADAPTER_FILE}` (an adapter)."
        )
    paths = [path for pattern in SETTINGS_PATTERNS if pattern.endswith(".json") for path in folder.glob(pattern)]
    contents = {path.name: _read_json(path) for path in paths}
    for name, content in contents.items():
        _check_kinds(folder / name, content)
        _check_code(folder / name, content)
    adapter = contents.get(ADAPTER_FILE)
    if adapter is not None:
        library = str((adapter.get("auto_mapping") or {}).get("parent_library") or "fusionmatch")
        named = adapter.get("megatron_core") if adapter.get("megatron_config") else None
        if library.split(".")[0] != "fusionmatch" or named is not None:
            raise UnsafeFolderError(
                f"{folder / ADAPTER_FILE} names the module `{named or library}`, which is none of FusionMatch: it is "
                "not loaded. Take the entry out if you trust the rest."
            )
    elif contents[CONFIG_FILE].get("model_type") != FusionMatchConfig.model_type:
        FusionMatchConfig.from_dict(contents[CONFIG_FILE])  # raises the worded error
    else:
        others = [name for name in contents[CONFIG_FILE].get("architectures") or () if name not in _OUR_MODELS]
        if others:
            raise UnsafeFolderError(
                f"{folder / CONFIG_FILE} names the class {', '.join(map(str, others))}; FusionMatch has "
                f"{' and '.join(_OUR_MODELS)}. Load it with the library that has that class."
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsafeFolderError(
            f"{path} is not JSON that can be read ({error}), so it is not whole. Save or fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise UnsafeFolderError(f"{path} holds no mapping but {type(content).__name__}. Save or fetch it again.")
    # What is parsed can still be too deep for the checks here, and for the copies that transformers makes.
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        inner = (part for each in level for part in (each.values() if isinstance(each, dict) else each))
        level = [part for part in inner if isinstance(part, (dict, list))]
    if level:
        raise UnsafeFolderError(
            f"{path} is nested more than {_DEEPEST} deep, as no settings are. Save or fetch it again."
        )
    return content


def _check_kinds(path: Path, content: dict[str, Any]) -> None:
    """Raises where an entry that is read before the library's own checks is not what it has to be."""
    for name, kind in _KINDS.get(path.name, {}).items():
        value = content.get(name)
        if not isinstance(value, kind):
            raise UnsafeFolderError(
                f"{path} has {type(value).__name__} as `{name}`, which has to be "
                f"{kind.__name__ if isinstance(kind, type) else kind}. Save or fetch it again."
            )


def _check_code(path: Path, content: Any) -> None:
    """Raises where a setting, at any depth, would have transformers import something that is not this library's."""
    for key, value in content.items():
        if key == "auto_map" and path.name in (CONFIG_FILE, "processor_config.json", "tokenizer_config.json"):
            # Read as broadly as it could be meant: what is no mapping names code as well.
            each_auto = value.values() if isinstance(value, dict) else [value]
            named = [name for each in each_auto for name in (each if isinstance(each, list) else [each])]
            foreign = [name for name in named if name is not None and not _OUR_CODE.fullmatch(str(name))]
        elif key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
            # With a slash it is a repository of kernels.
            foreign = [value] if "/" in str(value) else []
        else:
            foreign = [value] if value and key in ("auto_map", "custom_pipelines", "transformers_weights") else []
            for inner in value if isinstance(value, list) else [value]:
                if isinstance(inner, dict) and path.name != "tokenizer.json":
                    _check_code(path / key, inner)
        if foreign:
            raise UnsafeFolderError(
                f"{path} names code or files of its own (`{key}`: {foreign[0]}), which are not this library's. It is "
                "not loaded; take the entry out if you trust the rest."
            )


def check_weights(folder: str | Path) -> list[Path]:
    """
    The weights of a checkpoint or adapter, each looked at: they are safetensors, whole, and lie in the folder itself.

    Raises:
        [`UnsafeFolderError`]: there are none, they are pickled, cut short or broken, or named outside of the folder.
    """
    folder = Path(folder)
    adapter = (folder / ADAPTER_FILE).is_file()
    names = {path.name for path in folder.glob(ADAPTER_WEIGHTS_FILE if adapter else "model*.safetensors")}
    if WEIGHTS_FILE in names:
        names = {name for name in names if not Path(name).match(SHARDS_PATTERNS[0])}
    for index in () if adapter or WEIGHTS_FILE in names else folder.glob("model*.safetensors.index.json"):
        shards = _read_json(index).get("weight_map")
        shards = set(map(str, shards.values())) if isinstance(shards, dict) else {f"{shards}"}
        outside = sorted(name for name in shards if re.fullmatch(r"model[\w.-]*\.safetensors", name) is None)
        if outside:
            raise UnsafeFolderError(
                f"{index} takes weights from {outside[0]!r}; they have to lie beside it, as `model-....safetensors`. "
                "Save the checkpoint again with `save_pretrained`."
            )
        missing = sorted(shards - names)
        if missing:
            raise UnsafeFolderError(f"{folder} is not whole: `{missing[0]}` is missing. Copy or fetch it again.")
    if not names:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UnsafeFolderError(
                f"The weights in {folder} are pickled ({', '.join(pickles)}), and reading them could run any code. "
                "Ask for safetensors, or convert them where you trust them, with `save_pretrained`."
            )
        raise UnsafeFolderError(f"{folder} holds no weights (`*.safetensors`). Save or fetch it again.")
    for name in sorted(names):
        try:
            # Opening compares the header with the size of the file.
            with safe_open(folder / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UnsafeFolderError(
                f"{folder / name} is no whole safetensors file ({error}). Save, copy or fetch it again."
            ) from error
    return [folder / name for name in sorted(names)]
