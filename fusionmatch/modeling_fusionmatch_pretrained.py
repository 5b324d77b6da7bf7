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
FusionMatch models out of what was trained before: out of two encoders, out of the two towers of an aligned model, or a
base and an adapter that was made on it.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import cached_file, logging

from .configuration_fusionmatch import FusionMatchConfig
from .towers_fusionmatch import has_optional_pooler, has_pooler, tower_class


if TYPE_CHECKING:
    from .modeling_fusionmatch import FusionMatchModel


logger = logging.get_logger(__name__)

# Beside the weights of an adapter; `fusionmatch.loading.write_fingerprint` writes it.
NOTE_FILE = "fusionmatch_base.json"
# Settings that a base may be loaded with in place of its own; the others say what its weights are.
BASE_SETTINGS = FusionMatchConfig.__annotations__.keys() - {
    *("vision_config", "text_config", "untrained_modules", "format_version"),
}


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
    if with_adapter:
        return _digest({_base_name(name): tensor for name, tensor in model.state_dict().items()})
    return _digest(base_state_dict(model))


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _sum_of_bits(tensor: torch.Tensor) -> int:
    """Of a tensor's bits, read as integers of 8 bytes where they fit."""
    flat = tensor.detach().contiguous().flatten()
    fit = all(count * flat.element_size() % 8 == 0 for count in (flat.numel(), flat.storage_offset()))
    return int(flat.view(torch.int64 if fit else torch.uint8).sum())


def precision(model: nn.Module) -> str:
    """In what a model's weights are kept: a base loaded in another precision has other bytes but is no other base."""
    # With the comma, by which a quantised one is told.
    method = f"{model.quantization_method.value}, " if getattr(model, "is_quantized", False) else ""
    return f"{method}{model.dtype}"


def noted_settings(note: dict[str, Any]) -> dict[str, Any]:
    """
    The settings in what [`~fusionmatch.loading.write_fingerprint`] wrote; of a file from elsewhere nothing else is
    passed on.
    """
    return {name: value for name, value in (note.get("settings") or {}).items() if name in BASE_SETTINGS}


def base_revision(config: FusionMatchConfig) -> str | None:
    """The commit of the Hub repository that a model was loaded from; `None` for one from a folder."""
    return None if Path(config.name_or_path).is_dir() else getattr(config, "_commit_hash", None)


@torch.no_grad()
def set_starts(model: nn.Module, settings: dict[str, Any]) -> None:
    """Starting values in place of the checkpoint's, which brings its own for all, in parts that were never trained."""
    core = getattr(model, "fusionmatch", model)
    parts = {"gate_init_value": ("vision_fusion", "text_fusion"), "logit_scale_init_value": ("similarity",)}
    for setting in [name for name in parts if name in settings]:
        for name in parts[setting]:
            module = getattr(core, name)
            if module is None:
                continue
            if name not in core.config.untrained_modules:
                logger.warning(f"`{setting}` has no effect: `{name}` of this checkpoint was trained already.")
            elif setting == "gate_init_value":
                module.residual.gate.fill_(settings[setting])
            else:
                module.logit_scale.fill_(settings[setting])


def check_base(
    model: nn.Module,
    note: dict[str, Any],
    adapter: str | Path,
    read_again: Callable[[torch.dtype], nn.Module | None],
    digest: Callable[[nn.Module], str] = fingerprint,
    remedy: str = "Load it on the base that it was made on",
) -> None:
    """
    Compares a model with the base that an adapter was made on. Where that cannot be told, a warning says so.

    Args:
        model (`nn.Module`):
            The model that the adapter is to be loaded on.
        note (`dict[str, Any]`):
            What [`~fusionmatch.loading.write_fingerprint`] wrote beside the adapter.
        adapter (`str` or `Path`):
            The adapter, for the words.
        read_again (`Callable[[torch.dtype], nn.Module | None]`):
            Gives the model's checkpoint in another precision, or `None` where there is none.
        digest (`Callable[[nn.Module], str]`, *optional*):
            Gives the fingerprint of a model.
        remedy (`str`, *optional*):
            What to do, for the words.

    Raises:
        `ValueError`: its weights are others.
    """
    compared, noted = model, getattr(torch, note["dtype"].removeprefix("torch."), None)
    if note["dtype"] != precision(model) and isinstance(noted, torch.dtype):
        # In another precision the same base has other bytes, so it is read once more for them.
        compared = read_again(noted) or model
    base = model.config.name_or_path or "this model"
    if note["dtype"] != precision(compared):
        logger.warning(
            f"The adapter {adapter} was made on a base in {note['dtype']}, and {base} is loaded in "
            f"{precision(compared)}: whether the two are the same base cannot be told."
        )
        return
    found = digest(compared)
    if found != note["fingerprint"]:
        raise ValueError(
            f"The adapter {adapter} was made on a base with the fingerprint {note['fingerprint']}, but {base} has "
            f"{found}. {remedy}, or adapt anew."
        )


class FusionMatchAdapterMixin:
    """Loading of adapters by transformers' own routes, on the base that they were made on and on no other."""

    # A sum of the bits of each weight, and the fingerprint that the weights had.
    _known_fingerprint: tuple[dict[str, int], str] | None = None

    def load_adapter(
        self, peft_model_id: str | None = None, adapter_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """
        Loads an adapter, as `load_adapter` of transformers does and with its arguments; `from_pretrained` of an
        adapter's folder comes here as well. An adapter that notes its base
        ([`~fusionmatch.loading.write_fingerprint`]) is loaded on that base only, built with the settings that it
        notes.

        Args:
            peft_model_id (`str`, *optional*):
                Folder or Hub name of the adapter.
            adapter_name (`str`, *optional*, defaults to `"default"`):
                The name that it gets.
            args, kwargs:
                As for transformers.

        Returns:
            `LoadStateDictInfo`: as transformers gives it.

        Raises:
            `ValueError`: the adapter was made on a base with other weights or other settings.
        """
        load_config = kwargs.get("load_config")
        name = peft_model_id or getattr(load_config, "pretrained_model_name_or_path", None)
        if name is not None:
            # In the order in which transformers puts them together for the weights.
            hub = dict(getattr(load_config, "download_kwargs", None) or {})
            note = _read_note(name, hub | kwargs | (kwargs.get("adapter_kwargs") or {}))
            if note is not None:
                self._check_note(note, name)
        # transformers leaves away the end of the name that DoRA's magnitudes have in the model, and would go on with
        # those of the base.
        magnitudes = WeightRenaming(r"(lora_magnitude_vector\.[^.]+)$", r"\1.weight")
        mapping = kwargs.pop("weight_mapping", None) or getattr(load_config, "weight_mapping", None)
        mapping = [*(mapping or get_model_conversion_mapping(self)), magnitudes]
        self._other_adapters = set(getattr(self, "peft_config", {})) - {adapter_name or "default"}
        try:
            return super().load_adapter(peft_model_id, adapter_name, *args, weight_mapping=mapping, **kwargs)
        finally:
            del self._other_adapters

    @classmethod
    def _load_pretrained_model(cls, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        info, offloaded = super()._load_pretrained_model(model, *args, **kwargs)
        # transformers would report each weight of the adapters that are there as missing from a further one's file.
        names = "|".join(map(re.escape, getattr(model, "_other_adapters", ())))
        if names:
            of_others = re.compile(rf"\.({names})(\.weight|\.bias)?$")
            info.missing_keys = {key for key in info.missing_keys if not of_others.search(key)}
        return info, offloaded

    def _check_note(self, note: dict[str, Any], adapter: str) -> None:
        settings = noted_settings(note)
        # As they are after writing and reading: tuples are lists then.
        own = {name: json.loads(json.dumps(getattr(self.config, name))) for name in settings}
        others = [name for name in sorted(settings) if own[name] != settings[name]]
        if others:
            found = ", ".join(f"`{name}` {settings[name]}, here {own[name]}" for name in others)
            raise ValueError(
                f"The adapter {adapter} was made on a base with other settings: {found}. Load both by "
                "`fusionmatch.loading.load_pretrained`, or the base with these settings as arguments of "
                "`from_pretrained`."
            )

        def read_again(dtype: torch.dtype) -> nn.Module | None:
            place = self.config.name_or_path
            if not place:
                return None
            try:
                again = type(self).from_pretrained(place, revision=base_revision(self.config), dtype=dtype, **settings)
            except OSError:
                return None
            set_starts(again, settings)
            return again

        remedy = (
            "Load it on the base that it was made on (`fusionmatch.loading.load_pretrained` does, with the revision "
            "and the settings that it notes)"
        )
        check_base(self, note, adapter, read_again, _known_or_new_fingerprint, remedy)


def _known_or_new_fingerprint(model: nn.Module) -> str:
    """The fingerprint; taken anew only where the sums of the weights' bits, which take far less time, have changed."""
    tensors = base_state_dict(model)
    # Versions of tensors would cost nothing, but what is written through `.data`, as PEFT merges, leaves them alone.
    sums = {name: _sum_of_bits(tensor) for name, tensor in tensors.items()}
    known = getattr(model, "_known_fingerprint", None)
    if known is None or known[0] != sums:
        model._known_fingerprint = known = sums, _digest(tensors)
    return known[1]


def _read_note(adapter: str | Path, hub: dict[str, Any]) -> dict[str, Any] | None:
    """What is noted beside an adapter's weights; `None` for an adapter that PEFT wrote alone."""
    wanted = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")
    quiet = ("gated_repo", "missing_entries", "connection_errors")
    try:
        path = cached_file(
            adapter,
            NOTE_FILE,
            **{name: hub[name] for name in wanted if name in hub},
            **{f"_raise_exceptions_for_{name}": False for name in quiet},
        )
    except OSError:
        # There is no such adapter, which is better said by what loads its weights.
        return None
    if path is None:
        return None
    try:
        note = json.loads(Path(path).read_text(encoding="utf-8"))
        whole = all(isinstance(note[name], str) for name in ("fingerprint", "dtype"))
        whole = whole and isinstance(note.get("settings"), dict | None)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(
            f"{NOTE_FILE} of the adapter {adapter} does not say which base it was made on. Copy or fetch the adapter "
            "again."
        )
    return note


class FusionMatchFromPretrainedMixin:
    """The constructors of [`FusionMatchModel`]."""

    @classmethod
    def from_vision_text_pretrained(
        cls, vision_model_name_or_path: str, text_model_name_or_path: str, **kwargs: Any
    ) -> "FusionMatchModel":
        r"""
        Puts a model together from a pretrained vision encoder and a pretrained text encoder. Heads and fusion branch
        are new and have to be trained.

        Args:
            vision_model_name_or_path (`str`):
                Vision encoder: a name on the Hub or a folder. Of a model with two towers (CLIP, SigLIP) the vision
                tower is taken.
            text_model_name_or_path (`str`):
                Text encoder, likewise.
            kwargs:
                Settings of [`FusionMatchConfig`]. Those that begin with `vision_` or `text_` and are not settings of
                it (`vision_revision`, `text_dtype`, ...) go to the loading of that tower, or into its configuration,
                without the prefix.

        Returns:
            [`FusionMatchModel`]: in evaluation mode.

        Example:

        ```python
        >>> from fusionmatch import FusionMatchModel

        >>> model = FusionMatchModel.from_vision_text_pretrained("google/vit-base-patch16-224", "bert-base-uncased")
        ```"""
        names = {"vision": vision_model_name_or_path, "text": text_model_name_or_path}
        towers, settings = {}, dict(kwargs)
        for tower, name in names.items():
            prefix = f"{tower}_"
            loading = {
                key.removeprefix(prefix): settings.pop(key)
                for key in kwargs
                if key.startswith(prefix) and not hasattr(FusionMatchConfig, key)
            }
            tower_config, unused = AutoConfig.from_pretrained(name, **loading, return_unused_kwargs=True)
            # What became a setting of the tower's configuration is no argument of its loading any more.
            loading = {key: value for key, value in loading.items() if key in unused or not hasattr(tower_config, key)}
            tower_config = getattr(tower_config, f"{tower}_config", None) or tower_config
            # A pooler that comes as an option (BERT, ViT) is trained for another task or not at all.
            optional_pooler = has_optional_pooler(tower_config)
            pooling = settings.get(f"{tower}_pooling", "mean" if optional_pooler else None)
            if optional_pooler and pooling != "pooler":
                loading["add_pooling_layer"] = False
            towers[tower] = tower_class(tower_config).from_pretrained(name, config=tower_config, **loading)
            settings[f"{tower}_pooling"] = pooling or ("pooler" if has_pooler(towers[tower]) else "mean")
        config = FusionMatchConfig(
            vision_config=towers["vision"].config, text_config=towers["text"].config, **settings
        )
        model = cls(config)
        model.vision_model.load_state_dict(towers["vision"].state_dict())
        model.text_model.load_state_dict(towers["text"].state_dict())
        config.untrained_modules = [name for name, _ in model.named_children() if not name.endswith("_model")]
        logger.warning(
            "Heads, fusion branch and similarity of this FusionMatch model are newly initialised. Train it before use."
        )
        return model.eval()

    @classmethod
    def from_dual_encoder_pretrained(cls, model_name_or_path: str, **kwargs: Any) -> "FusionMatchModel":
        r"""
        Takes over both towers, projections and similarity of an aligned model (CLIP, SigLIP and their kin). The result
        equals that model until the fusion branch is trained.

        Args:
            model_name_or_path (`str`):
                The model: a name on the Hub or a folder.
            kwargs:
                Settings of [`FusionMatchConfig`].

        Returns:
            [`FusionMatchModel`]: in evaluation mode.

        Raises:
            `ValueError`: the model has no two towers.

        Example:

        ```python
        >>> from fusionmatch import FusionMatchModel

        >>> model = FusionMatchModel.from_dual_encoder_pretrained("google/siglip-base-patch16-224")
        ```"""
        base = AutoModel.from_pretrained(model_name_or_path)
        if not all(hasattr(base, name) for name in ("vision_model", "text_model", "logit_scale")):
            raise ValueError(
                f"`{model_name_or_path}` is a `{base.config.model_type}` model without two aligned towers. For two "
                "separate encoders use `FusionMatchModel.from_vision_text_pretrained`."
            )
        projected = hasattr(base, "visual_projection")
        bias = getattr(base, "logit_bias", None)
        scale = base.logit_scale.detach().float().exp().max().item()
        settings = {
            "base_head": "linear" if projected else "none",
            "projection_dim": base.visual_projection.out_features
            if projected
            else base.config.text_config.hidden_size,
            "vision_pooling": "pooler",
            "text_pooling": "pooler",
            "logit_bias_init_value": None if bias is None else bias.detach().float().max().item(),
            "max_logit_scale": max(100.0, math.ceil(scale)),
        }
        config = FusionMatchConfig(
            vision_config=base.config.vision_config, text_config=base.config.text_config, **(settings | kwargs)
        )
        model = cls(config).to(base.dtype)
        model.vision_model.load_state_dict(base.vision_model.state_dict())
        model.text_model.load_state_dict(base.text_model.state_dict())
        if projected:
            model.vision_head.load_state_dict(base.visual_projection.state_dict())
            model.text_head.load_state_dict(base.text_projection.state_dict())
        similarity = {"logit_scale": base.logit_scale.detach().reshape(1)}
        if bias is not None:
            similarity["logit_bias"] = bias.detach().reshape(1)
        model.similarity.load_state_dict(similarity)
        config.untrained_modules = [name for name, _ in model.named_children() if name.endswith("_fusion")]
        return model.eval()


__all__ = [
    "BASE_SETTINGS",
    "NOTE_FILE",
    "FusionMatchAdapterMixin",
    "FusionMatchFromPretrainedMixin",
    "base_revision",
    "base_state_dict",
    "check_base",
    "fingerprint",
    "noted_settings",
    "precision",
    "set_starts",
]
