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

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.utils import cached_file, logging

from .configuration_fusionmatch import FusionMatchConfig
from .modeling_fusionmatch import FusionMatchModel
from .modeling_fusionmatch_ranking import FusionMatchForImageTextRetrieval


logger = logging.get_logger(__name__)

FINGERPRINT_FILE = "fusionmatch_base.json"


def base_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model without its adapters, under the names that they have without: those of its base."""
    return {
        _base_name(name): tensor
        for name, tensor in model.state_dict().items()
        if ".modules_to_save." not in name and ".lora_" not in name
    }


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")


def fingerprint(model: nn.Module, with_adapter: bool = False) -> str:
    """
    Hex digest (32 characters) of a model's weights. By default adapters do not count: a `PeftModel` has the
    fingerprint of its base.
    """
    digest = hashlib.blake2b(digest_size=16)
    tensors = base_state_dict(model)
    if with_adapter:
        tensors = {_base_name(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def precision(model: nn.Module) -> str:
    """In what a model's weights are kept: a base loaded in another precision has other bytes but is no other base."""
    # With the comma, by which a quantised one is told.
    method = f"{model.quantization_method.value}, " if getattr(model, "is_quantized", False) else ""
    return f"{method}{model.dtype}"


def changed_settings(config: FusionMatchConfig) -> dict[str, Any]:
    """Settings in which a loaded configuration differs from the checkpoint that it came from."""
    saved = FusionMatchConfig.from_pretrained(config.name_or_path)
    own = FusionMatchConfig.__annotations__.keys() - {"vision_config", "text_config", "untrained_modules"}
    return {name: getattr(config, name) for name in sorted(own) if getattr(config, name) != getattr(saved, name)}


@torch.no_grad()
def _set_starts(model: FusionMatchModel, settings: dict[str, Any]) -> None:
    """Starting values in place of the checkpoint's, which brings its own for all, in parts that were never trained."""
    parts = {"gate_init_value": ("vision_fusion", "text_fusion"), "logit_scale_init_value": ("similarity",)}
    for setting in [name for name in parts if name in settings]:
        for name in parts[setting]:
            module = getattr(model, name)
            if module is None:
                continue
            if name not in model.config.untrained_modules:
                logger.warning(f"`{setting}` has no effect: `{name}` of this checkpoint was trained already.")
            elif setting == "gate_init_value":
                module.residual.gate.fill_(settings[setting])
            else:
                module.logit_scale.fill_(settings[setting])


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
            Passed to `from_pretrained`: `dtype`, `revision`, `attn_implementation`, ..., and settings of
            [`FusionMatchConfig`] in place of the checkpoint's.

    Returns:
        `tuple`: the [`FusionMatchModel`] or [`FusionMatchForImageTextRetrieval`] or, for an adapter, a `PeftModel`
        around it, in evaluation mode; and the [`FusionMatchProcessor`].

    Raises:
        `FileNotFoundError`: the folder has neither a checkpoint nor an adapter.
        `ValueError`: it holds another kind of model, or the adapter was made on a base with other weights.
    """
    path = Path(model_name_or_path)
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise FileNotFoundError(
            f"{path} has neither `config.json` (a checkpoint) nor `adapter_config.json` (an adapter)."
        )
    if _file(model_name_or_path, "adapter_config.json", kwargs.get("revision")):
        return _load_adapter(model_name_or_path, ranking_stage=ranking_stage, **kwargs)
    config = AutoConfig.from_pretrained(model_name_or_path, revision=kwargs.get("revision"))
    if not isinstance(config, FusionMatchConfig):
        FusionMatchConfig.from_dict(config.to_dict())  # raises the worded error
    has_stage = FusionMatchForImageTextRetrieval.__name__ in (config.architectures or ())
    if has_stage and ranking_stage is not False:
        model = FusionMatchForImageTextRetrieval.from_pretrained(model_name_or_path, **kwargs)
    else:
        model = AutoModel.from_pretrained(model_name_or_path, **kwargs)
        if ranking_stage:
            model = FusionMatchForImageTextRetrieval.from_dual_encoder(model)
    _set_starts(getattr(model, "fusionmatch", model), kwargs)
    return model.eval(), AutoProcessor.from_pretrained(model_name_or_path, revision=kwargs.get("revision"))


def _file(model_name_or_path: str | Path, name: str, revision: str | None) -> str | None:
    """Path of a file of a folder or of a Hub repository, or `None` where it has no such file."""
    return cached_file(
        str(model_name_or_path),
        name,
        revision=revision or "main",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _load_adapter(path: str | Path, **kwargs: Any) -> tuple[nn.Module, Any]:
    from peft import PeftConfig, PeftModel

    revision = kwargs.pop("revision", None)  # of the adapter, not of the base
    base_path = PeftConfig.from_pretrained(path, revision=revision).base_model_name_or_path
    if not base_path:
        raise ValueError(
            f"The adapter {path} does not say which base it belongs to. Save the base with `save_pretrained` and put "
            "its path as `base_model_name_or_path` into `adapter_config.json`."
        )
    note = _file(path, FINGERPRINT_FILE, revision)
    made_on = None if note is None else json.loads(Path(note).read_text(encoding="utf-8"))
    base, processor = load_pretrained(base_path, **((made_on or {}).get("settings", {}) | kwargs))
    if made_on is not None:
        found = fingerprint(base)
        if made_on["dtype"] != precision(base) and "," in made_on["dtype"] + precision(base):
            logger.warning(
                f"The adapter {path} was made on a base in {made_on['dtype']}, and {base_path} is loaded in "
                f"{precision(base)}: whether the two are the same base cannot be told."
            )
        if made_on["fingerprint"] != found and made_on["dtype"] == precision(base):
            raise ValueError(
                f"The adapter {path} was made on a base with the fingerprint {made_on['fingerprint']}, but "
                f"{base_path} has {found}. "
                "Load it on the base that it was made on, or adapt anew."
            )
    if _file(path, "processor_config.json", revision):
        processor = AutoProcessor.from_pretrained(path, revision=revision)
    model = PeftModel.from_pretrained(base, path, revision=revision).eval()
    # Modules that the adapter carries whole are trained now; merged, the model must not count as fresh.
    carried = {name for config in model.peft_config.values() for name in config.modules_to_save or ()}
    base.config.untrained_modules = [name for name in base.config.untrained_modules if name not in carried]
    return model, processor
