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

"""What trains: frozen towers, LoRA on them, and the modules that an adapter carries whole."""

import contextlib
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, set_seed

from ..loading import base_revision
from ..modeling_fusionmatch import FusionMatchModel
from ..modeling_fusionmatch_ranking import FusionMatchForImageTextRetrieval
from ..outputs_fusionmatch import FusionMatchOutput


if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel

# Where LoRA goes in convolutional towers: the pointwise convolutions of the last blocks ({last}: two thirds of them).
# The early ones, on the largest maps, are the dearest to compute and to remember, and the gradient then need not go
# through them. Keyed by a part of the tower's `model_type`. In all other towers it goes into each linear layer of each
# block, which is what it takes to come near full tuning (arXiv 2305.14314, section 4).
LORA_CONVOLUTIONS = {
    "convnext": r"stages\.{last}\..*(pwconv1|pwconv2)",
    "efficientnet": r"(blocks\.{last}\..*(expand_conv|project_conv)|top_conv)",
    "resnet": r"stages\.{last}\..*convolution",
}

# What an adaptation trains.
PRESETS = {
    "fast": "heads, fusion and similarity; the features of both towers are computed once",
    "lora": "the same and LoRA in both towers",
    "dora": "the same with weight-decomposed LoRA (arXiv 2402.09353), slower; no better where we measured it",
    "qlora": "LoRA on towers whose linear layers are kept in 4 bits (arXiv 2305.14314), for large ones; on GPUs",
    "full": "all weights, into a checkpoint of its own",
}
# Of the towers, where all of their weights train; the rate of fresh heads would undo what the towers know.
FULL_TOWER_LEARNING_RATE = 5e-5

# PEFT's name for the base among the adapters of a batch.
_BASE = "__base__"

HEAD_MODULES = (
    *("vision_head", "text_head", "vision_fusion", "text_fusion"),
    *("concept_bank", "vision_consensus", "text_consensus", "similarity", "ranker"),
)


def four_bit_config(compute_dtype: torch.dtype = torch.float32) -> BitsAndBytesConfig:
    """
    Loads the linear layers of both towers in 4 bits (NF4 with double quantisation; QLoRA, arXiv 2305.14314): a
    `quantization_config` for [`~fusionmatch.loading.load_pretrained`]. Heads and fusion keep their precision.

    Args:
        compute_dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            What the towers compute in.

    Raises:
        `ImportError`: bitsandbytes is not installed; the message has the `pip install` line.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError('QLoRA needs bitsandbytes. Install it with: pip install "fusionmatch[qlora]"')
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=list(HEAD_MODULES),
    )


def peft_base(model: nn.Module) -> nn.Module:
    """The model inside a `PeftModel`, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def unwrap_model(model: nn.Module) -> FusionMatchModel:
    """The [`FusionMatchModel`] inside a `PeftModel`, inside a model with a ranking stage, or the model itself."""
    model = peft_base(model)
    return model.fusionmatch if isinstance(model, FusionMatchForImageTextRetrieval) else model


def model_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The parts of a model by name: those of the [`FusionMatchModel`], and `ranker` where it has a ranking stage."""
    parts = dict(unwrap_model(model).named_children())
    base = peft_base(model)
    return parts | ({"ranker": base.ranker} if isinstance(base, FusionMatchForImageTextRetrieval) else {})


def trains(module: nn.Module) -> bool:
    """Whether any weight of a module is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


def with_adapter(model: nn.Module, peft_config: "PeftConfig", seed: int) -> "PeftModel":
    """
    A model in a new adapter.

    Args:
        model ([`FusionMatchModel`] or [`FusionMatchForImageTextRetrieval`]):
            The base.
        peft_config ([`~peft.PeftConfig`]):
            The adapter's settings.
        seed (`int`):
            LoRA starts from random weights; this governs them.

    Raises:
        `ValueError`: the base was not loaded from anywhere.
    """
    import peft

    place = model.config.name_or_path
    if not place:
        raise ValueError(
            "The base was put together in memory, so an adapter could not say where its base is. Save it with "
            "`save_pretrained`, load it from there with `from_pretrained`, and adapt that."
        )
    set_seed(seed)
    # An adapter has to find its base again from wherever it is loaded.
    if Path(place).is_dir():
        model.config.name_or_path = model.name_or_path = str(Path(place).resolve())
    return peft.get_peft_model(model, peft_config, revision=base_revision(model.config))


def set_tower_rate(optimizer: torch.optim.Optimizer, names: dict[int, str], rate: float) -> None:
    """
    Gives the towers' weights a learning rate of their own.

    Args:
        optimizer (`torch.optim.Optimizer`):
            Its groups are divided in place.
        names (`dict[int, str]`):
            Name of each parameter by its `id`.
        rate (`float`):
            The towers' peak rate.
    """
    groups = []
    for group in optimizer.param_groups:
        for in_tower in (False, True):
            parameters = [
                p
                for p in group["params"]
                if ("vision_model." in names[id(p)] or "text_model." in names[id(p)]) == in_tower
            ]
            if parameters:
                groups.append({**group, "params": parameters} | ({"lr": rate} if in_tower else {}))
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)


def freeze_towers(model: FusionMatchModel) -> FusionMatchModel:
    """Stops training of both towers; heads, fusion branch and similarity stay trainable."""
    for tower in (model.vision_model, model.text_model):
        tower.requires_grad_(False)
    return model


def lora_target_modules(model: FusionMatchModel, towers: tuple[str, ...] = ("vision", "text")) -> str:
    """
    Regex of the modules that get LoRA: each linear layer of the blocks of the named towers, or the pointwise
    convolutions of their last two thirds.

    Raises:
        `ValueError`: a tower has neither.
    """
    patterns = []
    for tower in towers:
        model_type = getattr(model.config, f"{tower}_config").model_type
        modules = dict(getattr(unwrap_model(model), f"{tower}_model").named_modules())
        target = next((target for family, target in LORA_CONVOLUTIONS.items() if family in model_type), None)
        if target is None:
            # Blocks are numbered; one pattern stands for all of them.
            parts = [name.split(".") for name in _linear_layers(modules)]
            found = {
                r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in name)
                for name in parts
                if any(part.isdigit() for part in name)
            }
        else:
            blocks = [name for name in modules if re.fullmatch(r"encoder\.(blocks|stages)\.\d+", name)]
            last = "|".join(str(i) for i in range(len(blocks) - math.ceil(2 * len(blocks) / 3), len(blocks)))
            pattern = rf"(.*\.)?{target.replace('{last}', f'({last})')}"
            # A family is told by a part of its name, and a newcomer of that name may call its modules otherwise.
            found = {pattern} if any(re.fullmatch(pattern, name) for name in modules) else set()
        if not found:
            raise ValueError(
                f"No LoRA preset for the {tower} tower type `{model_type}`: its blocks have no linear layers, or it "
                f"is none of {', '.join(LORA_CONVOLUTIONS)} as they are known. Name the modules yourself with "
                "`target_modules` (`--lora_target_modules`)."
            )
        prefix = "" if isinstance(model, FusionMatchModel) else r"fusionmatch\."
        patterns.append(rf"{prefix}{tower}_model\.({'|'.join(sorted(found))})")
    return "|".join(patterns)


def _linear_layers(modules: Mapping[str, nn.Module]) -> list[str]:
    """Names of linear layers; of those that have got LoRA already the names that they had before."""
    return [
        name.removesuffix(".base_layer")
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and not any(part.startswith("lora_") for part in name.split("."))
    ]


def _inside(name: str) -> str:
    """The name of a module in the [`FusionMatchModel`], which one with a ranking stage holds inside."""
    return name.removeprefix("fusionmatch.")


def _named_targets(model: FusionMatchModel, towers: tuple[str, ...], named: str | list[str]) -> list[str]:
    """The modules of these towers that somebody named for LoRA, each as a regex."""
    pattern = named if isinstance(named, str) else rf"(.*\.)?({'|'.join(map(re.escape, named))})"
    starts = tuple(f"{tower}_model." for tower in towers)
    names = [name for name, _ in model.named_modules() if _inside(name).startswith(starts)]
    targets = [re.escape(name) for name in names if re.fullmatch(pattern, _inside(name))]
    if not targets:
        raise ValueError(
            f"None of the modules {named} is in a tower that gets LoRA ({', '.join(towers) or 'none does'}). "
            "`model.named_modules()` has their names."
        )
    return targets


def lora_config(
    model: FusionMatchModel,
    r: int = 8,
    lora_alpha: int = 16,
    lora_dropout: float = 0.05,
    target_modules: str | list[str] | None = None,
    towers: tuple[str, ...] = ("vision", "text"),
    **kwargs: Any,
) -> "LoraConfig":
    r"""
    LoRA configuration (arXiv 2106.09685) that fits the model's towers and head.

    Modules that were never trained (`config.untrained_modules`) are carried whole by the adapter; there is nothing in
    them that a low-rank change could refine. Trained ones get LoRA on their linear layers, and the similarity's scale
    is carried along.

    Args:
        model ([`FusionMatchModel`]):
            The base.
        r (`int`, *optional*, defaults to 8):
            Rank.
        lora_alpha (`int`, *optional*, defaults to 16):
            Scaling; the change is multiplied by `lora_alpha / r`.
        lora_dropout (`float`, *optional*, defaults to 0.05):
            Dropout before the LoRA layers.
        target_modules (`str` or `list[str]`, *optional*):
            Modules of these towers that get LoRA, by the ends of their names, or by a regular expression that matches
            whole names; defaults to the preset's.
        towers (`tuple[str, ...]`, *optional*, defaults to `("vision", "text")`):
            Towers that get LoRA; the others stay as they are, and their features can be cached.
        kwargs:
            Passed to [`~peft.LoraConfig`], e.g. `use_dora=True`.

    Returns:
        [`~peft.LoraConfig`]

    Raises:
        `ValueError`: there is no preset for a tower, or no tower has the named modules.
    """
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    parts = model_parts(model)
    # An identity head has nothing to save.
    present = [name for name in HEAD_MODULES if name in parts and any(True for _ in parts[name].parameters())]
    whole = [name for name in present if name in model.config.untrained_modules or name == "similarity"]
    if target_modules is not None:
        patterns = _named_targets(model, towers, target_modules)
    else:
        patterns = [lora_target_modules(model, towers)] if towers else []
    # A part by its own name: a head may be a linear layer itself.
    trained = [part for part in present if part not in whole]
    linear = _linear_layers(dict(model.named_modules()))
    patterns += [re.escape(name) for name in linear if _inside(name).split(".")[0] in trained]
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        # PEFT's own word for "none": an adapter may consist of whole modules alone.
        target_modules="|".join(patterns) or DUMMY_TARGET_MODULES,
        modules_to_save=whole,
        **kwargs,
    )


@torch.no_grad()
def embed_mixed_batch(model: "PeftModel", adapter_names: Sequence[str], **inputs: Any) -> FusionMatchOutput:
    r"""
    Embeds a batch whose rows are of several adapters, each row by its own: what `adapter_names` of a `PeftModel` is
    for, which cannot mix modules that an adapter carries whole (the similarity, and all that was never trained).

    The rows of an adapter go through the model together, in evaluation mode; afterwards the model is as it was.

    Args:
        model (`PeftModel`):
            The base with its adapters.
        adapter_names (`Sequence[str]`):
            Adapter of each row; `"__base__"`, as in PEFT, for none.
        inputs (`Any`):
            Inputs of [`FusionMatchModel`] that have these rows (pictures, texts, or as many of both), and settings.

    Returns:
        [`FusionMatchOutput`]: `image_embeds` and `text_embeds` of shape `(rows, projection_dim)`, in the order of the
        rows; no logits, since embeddings of two adapters are not comparable.

    Raises:
        `ValueError`: there are no rows, an adapter is unknown, or the inputs have another number of rows.
    """
    unknown = sorted(set(adapter_names) - {*model.peft_config, _BASE})
    if unknown or not adapter_names:
        raise ValueError(
            f"`adapter_names` names an adapter of the model for each row: {', '.join([*model.peft_config, _BASE])}; "
            f"got {', '.join(unknown) or 'none'}. Load others with `load_adapter`."
        )
    # Pictures as bytes and tower features are not tensors, but hold some.
    tensors = {name: next(iter(value.values())) if hasattr(value, "part") else value for name, value in inputs.items()}
    rows = {name: len(value) for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    if any(count != len(adapter_names) for count in rows.values()):
        raise ValueError(f"`adapter_names` has {len(adapter_names)} rows, the inputs have {rows}. Name one for each.")
    modes, active = {module: module.training for module in model.modules()}, model.active_adapter
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    merged: dict[str, torch.Tensor] = {}
    model.eval()
    try:
        for adapter in dict.fromkeys(adapter_names):
            own = torch.tensor([row for row, name in enumerate(adapter_names) if name == adapter])
            part = {
                name: inputs[name].part(own) if hasattr(inputs[name], "part") else tensors[name][own] for name in rows
            }
            if adapter != _BASE:
                model.set_adapter(adapter, inference_mode=True)
            with model.disable_adapter() if adapter == _BASE else contextlib.nullcontext():
                output = model(**(inputs | part))
            for field in ("image_embeds", "text_embeds"):
                if field in output:
                    empty = output[field].new_empty(len(adapter_names), output[field].shape[1])
                    merged.setdefault(field, empty)[own.to(empty.device)] = output[field]
    finally:
        # To change adapters is to freeze and to thaw them.
        model.set_adapter(active, inference_mode=True)
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
    return FusionMatchOutput(**merged)


def describe_trainable(model: nn.Module) -> list[tuple[str, int, int]]:
    """For each part of the model its name, trainable parameters and all parameters; the last row is the sum."""
    rows = []
    for name, child in model_parts(model).items():
        # PEFT keeps the untouched original of a module that an adapter carries whole; it is not part of the sum.
        parameters = [p for key, p in child.named_parameters() if not key.startswith("original_module.")]
        rows.append((name, sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)))
    return [*rows, ("all", sum(row[1] for row in rows), sum(row[2] for row in rows))]
