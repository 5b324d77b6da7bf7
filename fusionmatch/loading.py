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
"""Loading of checkpoints and adapters, with a check that an adapter meets the base that it was made on."""

import json
import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging

from .configuration_fusionmatch import FusionMatchConfig
from .modeling_fusionmatch_pretrained import (
    BASE_SETTINGS,
    base_revision,
    base_state_dict,
    check_base,
    fingerprint,
    noted_settings,
    precision,
    set_starts,
)
from .modeling_fusionmatch_ranking import FusionMatchForImageTextRetrieval
from .repository import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS_FILE,
    CONFIG_FILE,
    FINGERPRINT_FILE,
    HUB_ARGUMENTS,
    SETTINGS_PATTERNS,
    WEIGHTS_PATTERNS,
    UnsafeFolderError,
    check_settings,
    check_weights,
    fetch,
)


logger = logging.get_logger(__name__)


# Arguments that say where and how a base is kept; to be compared it is read into memory as it is.
_PLACING = ("device_map", "max_memory", "offload_folder", "quantization_config")


def changed_settings(config: FusionMatchConfig) -> dict[str, Any]:
    """Settings in which a loaded configuration differs from the checkpoint that it came from."""
    saved = FusionMatchConfig.from_pretrained(config.name_or_path, revision=base_revision(config))
    return {
        name: getattr(config, name) for name in sorted(BASE_SETTINGS) if getattr(config, name) != getattr(saved, name)
    }


def write_fingerprint(
    folder: str | Path, base: str, base_fingerprint: str, dtype: str, settings: dict[str, Any] | None = None
) -> None:
    """Notes in an adapter's folder which base it was made on, with which settings and in which [`precision`]."""
    content = {
        "base_model_name_or_path": base,
        "fingerprint": base_fingerprint,
        "dtype": dtype,
        "settings": settings or {},
    }
    (Path(folder) / FINGERPRINT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_pretrained(
    model_name_or_path: str | Path, ranking_stage: bool | None = None, **kwargs: Any
) -> tuple[nn.Module, Any]:
    """
    Loads a FusionMatch checkpoint, or an adapter together with its base, and the processor.

    Args:
        model_name_or_path (`str` or `Path`):
            Folder or Hub name of a checkpoint or of an adapter.
        ranking_stage (`bool`, *optional*):
            Whether to load a [`FusionMatchForImageTextRetrieval`]; by default where the checkpoint is one. On a
            checkpoint without a ranking stage the stage is new.
        kwargs:
            Passed to `from_pretrained`: `dtype`, `attn_implementation`, ..., and settings of [`FusionMatchConfig`] in
            place of the checkpoint's. For what is on the Hub `revision` (of an adapter, not of its base), `token`,
            `cache_dir`, `local_files_only` and `force_download`, for adapter and base alike.

    Returns:
        `tuple`: the [`FusionMatchModel`] or [`FusionMatchForImageTextRetrieval`] or, for an adapter, a `PeftModel`
        around it, in evaluation mode; and the [`FusionMatchProcessor`].

    Raises:
        `FileNotFoundError`: the folder has neither a checkpoint nor an adapter.
        `OSError`: the Hub does not give it; the message says why and what to do.
        `ValueError`: it holds another kind of model, or the adapter was made on a base with other weights or on
            another adapter.
        [`~fusionmatch.repository.UnsafeFolderError`]: it is not whole, as where weights of a trained part are missing,
            its weights are pickled, or it names code or files elsewhere. Nothing that is fetched is ever run.
    """
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    folder = _fetch_checked(model_name_or_path, **hub)
    load = _load_checkpoint
    if (folder / ADAPTER_FILE).is_file():
        load = partial(_load_adapter, hub=hub)
    return load(model_name_or_path, folder, ranking_stage=ranking_stage, **kwargs)


def _fetch_checked(name: str | Path, **hub: Any) -> Path:
    """The folder of a checkpoint or adapter, looked at; the settings first: what is not ours costs no weights."""
    folder = fetch(name, SETTINGS_PATTERNS, **hub)
    check_settings(folder)
    if not Path(name).is_dir():
        folder = fetch(name, (*SETTINGS_PATTERNS, *WEIGHTS_PATTERNS), **(hub | {"revision": folder.name}))
    check_weights(folder)
    return folder


def _load_checkpoint(
    name: str | Path, folder: Path, ranking_stage: bool | None = None, **kwargs: Any
) -> tuple[nn.Module, Any]:
    architectures = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("architectures")
    ranks = FusionMatchForImageTextRetrieval.__name__ in (architectures or ()) and ranking_stage is not False
    auto = FusionMatchForImageTextRetrieval if ranks else AutoModel
    # Otherwise transformers raises an error that names neither the weights nor what to do.
    loading = {"ignore_mismatched_sizes": True} | kwargs | {"use_safetensors": True, "output_loading_info": True}
    model, report = auto.from_pretrained(folder, **loading)
    if report["mismatched_keys"] and not kwargs.get("ignore_mismatched_sizes"):
        key, found, wanted = min(report["mismatched_keys"])
        raise UnsafeFolderError(
            f"{name} is not whole: `{key}` has the shape {tuple(found)} in its files and {tuple(wanted)} by its "
            "settings. Load it with its own settings, or save or fetch it again."
        )
    _check_none_missing(name, _missing_weights(model, folder, report["missing_keys"], kwargs))
    if ranking_stage and not ranks:
        model = FusionMatchForImageTextRetrieval.from_dual_encoder(model)
    # An adapter made on it notes this name and commit, not the place in the cache; PEFT looks at the model's own.
    model.config.name_or_path = model.name_or_path = str(name)
    model.config._commit_hash = None if Path(name).is_dir() else folder.name
    set_starts(model, kwargs)
    return model.eval(), AutoProcessor.from_pretrained(folder)


def _missing_weights(model: nn.Module, folder: Path, missing: Collection[str], settings: dict[str, Any]) -> set[str]:
    """Of what a checkpoint's files did not give to its model, what they should have."""
    untrained = model.config.untrained_modules
    found = {name for name in missing if name.removeprefix("fusionmatch.").split(".")[0] not in untrained}
    if found and settings.keys() & BASE_SETTINGS:
        # Settings in place of the checkpoint's own may bring parts that it never had.
        with torch.device("meta"):
            found &= type(model)(FusionMatchConfig.from_pretrained(folder)).state_dict().keys()
    return found


def _check_none_missing(name: str | Path, missing: Collection[str]) -> None:
    """Raises where weights are missing: in their place would be random ones, and results that nothing explains."""
    if missing:
        shown = ", ".join(f"`{key}`" for key in sorted(missing)[:3])
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        raise UnsafeFolderError(
            f"{name} is not whole: its files lack weights that its settings ask for, {shown}{more}. Save, copy or "
            "fetch it again."
        )


def _load_adapter(name: str | Path, path: Path, hub: dict[str, Any], **kwargs: Any) -> tuple[nn.Module, Any]:
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    config = PeftConfig.from_pretrained(path)
    base_path = config.base_model_name_or_path
    if not base_path:
        raise ValueError(
            f"The adapter {name} does not say which base it belongs to. Save the base with `save_pretrained` and put "
            "its path as `base_model_name_or_path` into `adapter_config.json`."
        )
    note = path / FINGERPRINT_FILE
    made_on = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    try:
        base_folder = _fetch_checked(base_path, **(hub | {"revision": config.revision}))
        if (base_folder / ADAPTER_FILE).is_file():
            raise ValueError(
                f"The base of the adapter {name}, {base_path}, is an adapter itself. Merge that one into its base "
                "(`fusionmatch adapter merge`), and adapt the checkpoint that comes of it."
            )
        loading = noted_settings(made_on or {}) | kwargs
        base, processor = _load_checkpoint(base_path, base_folder, **loading)
    except OSError as error:
        raise OSError(
            f"The base of the adapter {name} cannot be loaded. {error} If it lies elsewhere, put its path or Hub name "
            "as `base_model_name_or_path` into `adapter_config.json`."
        ) from error
    if made_on is not None:

        def read_again(dtype: torch.dtype) -> nn.Module:
            again = {key: value for key, value in loading.items() if key not in _PLACING} | {"dtype": dtype}
            return _load_checkpoint(base_path, base_folder, **again)[0]

        check_base(base, made_on, name, read_again)
    else:
        logger.warning(
            f"The adapter {name} does not note which base it was made on (there is no `{FINGERPRINT_FILE}`, as where "
            f"PEFT alone saved it): that {base_path} is that base was not checked."
        )
    if (path / "processor_config.json").is_file():
        processor = AutoProcessor.from_pretrained(path)
    try:
        with warnings.catch_warnings():
            # What is missing is an error here.
            warnings.filterwarnings("ignore", "Found missing adapter keys")
            model = PeftModel.from_pretrained(base, path).eval()
        # Embeddings that were not changed are no part of an adapter; to find out, PEFT would ask the Hub.
        expected = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    except KeyError as error:
        # PEFT looks up the weights of modules that an adapter carries whole.
        model, expected = None, set(error.args)
    with safe_open(path / ADAPTER_WEIGHTS_FILE, "pt") as weights:
        missing = expected - set(weights.keys())
    if model is None and not missing:
        raise UnsafeFolderError(f"{name} does not fit its base: PEFT found no place for {', '.join(expected)}.")
    _check_none_missing(name, missing)
    # Modules that the adapter carries whole are trained now; merged, the model must not count as fresh.
    carried = {name for config in model.peft_config.values() for name in config.modules_to_save or ()}
    base.config.untrained_modules = [name for name in base.config.untrained_modules if name not in carried]
    return model, processor


__all__ = [
    "base_revision",
    "base_state_dict",
    "changed_settings",
    "fingerprint",
    "load_pretrained",
    "noted_settings",
    "precision",
    "write_fingerprint",
]
