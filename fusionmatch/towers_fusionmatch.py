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
"""Towers of the PyTorch FusionMatch model: any transformers encoder, its levels, its pooled vector."""

import copy
import importlib.util
import inspect
import math

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_fusionmatch import FusionMatchConfig


def tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The model class of a tower's configuration."""
    model_class = AutoModel._model_mapping.get(type(config), None)
    if model_class is None:
        # A few towers (SigLIP's text model) are not registered with AutoModel, but stand beside their configuration.
        module_name = type(config).__module__.replace(".configuration_", ".modeling_")
        if importlib.util.find_spec(module_name) is not None:
            class_name = type(config).__name__.removesuffix("Config") + "Model"
            model_class = getattr(importlib.import_module(module_name), class_name, None)
    if model_class is None:
        raise ValueError(
            f"No encoder is known for the tower type `{config.model_type}` ({type(config).__name__}). Use a vision or "
            "text encoder that `transformers.AutoModel` can build."
        )
    return model_class


def has_optional_pooler(config: PreTrainedConfig) -> bool:
    """Whether the tower can be built without its pooler (BERT, ViT and their kin)."""
    return "add_pooling_layer" in inspect.signature(tower_class(config).__init__).parameters


def build_tower(config: PreTrainedConfig, pooling: str) -> PreTrainedModel:
    """Builds a tower from its configuration, without a pooler that would only be dead weight."""
    kwargs = {"add_pooling_layer": False} if pooling != "pooler" and has_optional_pooler(config) else {}
    return tower_class(config)._from_config(config, **kwargs)


def _dummy_pixels(config: PreTrainedConfig) -> torch.Tensor:
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.zeros(1, getattr(config, "num_channels", 3), height, width)


@torch.no_grad()
def has_pooler(tower: PreTrainedModel) -> bool:
    """Whether the tower pools its tokens itself; only its output tells."""
    if tower.main_input_name == "pixel_values":
        inputs = {"pixel_values": _dummy_pixels(tower.config).to(tower.dtype)}
    else:
        inputs = {"input_ids": torch.ones(1, 2, dtype=torch.long)}
    return tower(**inputs, return_dict=True).get("pooler_output") is not None


def accepted(model: nn.Module, *names: str) -> frozenset[str]:
    """Which of these arguments the model's forward names."""
    return frozenset(names) & inspect.signature(model.forward).parameters.keys()


def _grid(tokens: int, height: int, width: int) -> tuple[int, int, int] | None:
    """Leading tokens (class, registers), rows and columns of `tokens` patches of a (height, width) picture."""
    for leading in range(9):
        rows = math.isqrt((tokens - leading) * height // width)
        if rows > 0 and (tokens - leading) % rows == 0 and (tokens - leading) // rows * height == rows * width:
            return leading, rows, (tokens - leading) // rows
    return None


def level_grid(shape: tuple[int, ...], max_tokens: int, image_size: tuple[int, int]) -> tuple[int, int, int] | None:
    """
    How the tokens that [`level_tokens`] makes of a level lie in the picture: (leading tokens, rows, columns); `None`
    where they are in no grid.
    """
    grid = (0, *shape[2:]) if len(shape) == 4 else _grid(shape[1], *image_size)
    tokens = math.prod(shape[2:]) if len(shape) == 4 else shape[1]
    if tokens <= max_tokens or grid is None:
        return grid if tokens <= max_tokens else None
    leading, rows, columns = grid
    room = max_tokens - leading
    if room < 1:
        return None
    new_rows = min(max(1, math.isqrt(room * rows // columns)), room)
    return leading, new_rows, min(max(1, math.isqrt(room * columns // rows)), room // new_rows)


def level_tokens(hidden_state: torch.Tensor, max_tokens: int, image_size: tuple[int, int]) -> torch.Tensor:
    """One vision level (B, C, H, W) or (B, N, C) -> at most `max_tokens` tokens (B, N', C), pooled on their grid."""
    new_grid = level_grid(hidden_state.shape, max_tokens, image_size)
    if hidden_state.dim() == 4:
        size = hidden_state.shape[2:]
        hidden_state = hidden_state.flatten(2).transpose(1, 2)
    else:
        size = (_grid(hidden_state.shape[1], *image_size) or (0, 1, 1))[1:]
    if hidden_state.shape[1] <= max_tokens:
        return hidden_state
    # No picture grid to be seen in this token sequence, or no room for it beside the leading tokens: pool along it.
    if new_grid is None:
        return nn.functional.adaptive_avg_pool1d(hidden_state.transpose(1, 2), max_tokens).transpose(1, 2)
    leading = new_grid[0]
    patches = hidden_state[:, leading:].transpose(1, 2).unflatten(2, size)
    patches = nn.functional.adaptive_avg_pool2d(patches, new_grid[1:]).flatten(2).transpose(1, 2)
    return torch.cat([hidden_state[:, :leading], patches], dim=1)


def check_levels(levels: list[int], count: int, tower: str) -> None:
    """Refuses levels that a tower with `count` hidden states has not; -1, the last hidden state, every tower has."""
    for level in levels:
        if level != -1 and not -count <= level < count:
            raise ValueError(
                f"`{tower}_feature_levels` names level {level}, but the {tower} tower has {count} hidden states. "
                f"Allowed: {-count} to {count - 1}."
            )


def select_levels(levels: list[int], last_hidden_state: torch.Tensor, hidden_states: tuple | None, tower: str) -> list:
    """The hidden states that `levels` names; -1 is the tower's last, after its final normalisation."""
    check_levels(levels, len(hidden_states or ()), tower)
    return [last_hidden_state if level == -1 else hidden_states[level] for level in levels]


def check_text_tower(config: FusionMatchConfig, tower: PreTrainedModel) -> None:
    """Refuses a text tower that takes no tokens, and levels that it has not."""
    if tower.main_input_name != "input_ids":
        raise ValueError(
            f"`text_config` is of the type `{tower.config.model_type}`, whose input is `{tower.main_input_name}`, not "
            "`input_ids`. Use the configuration of a text encoder."
        )
    layers = getattr(config.text_config, "num_hidden_layers", None)
    if layers is not None:
        check_levels(config.text_feature_levels, layers + 1, "text")


def wanted_hidden_states(outputs: ModelOutput, wanted: bool | int | list[int]) -> tuple | None:
    """The hidden states that `output_hidden_states` asks for: all, or those at some indices, `None` elsewhere."""
    hidden_states = outputs.get("hidden_states")
    if hidden_states is None or isinstance(wanted, bool):
        return hidden_states if wanted else None
    count = len(hidden_states)
    kept = {index % count for index in ([wanted] if isinstance(wanted, int) else wanted) if -count <= index < count}
    return tuple(state if i in kept else None for i, state in enumerate(hidden_states))


def pool_tokens(outputs: ModelOutput, mask: torch.Tensor | None, pooling: str, tower: str) -> torch.Tensor:
    """One vector (batch, size) for each picture or text from the tower's outputs."""
    tokens = outputs.last_hidden_state
    if pooling == "pooler":
        pooled = outputs.get("pooler_output")
        if pooled is None:
            raise ValueError(
                f'`{tower}_pooling="pooler"`, but the {tower} tower has no `pooler_output`. Use "mean" or "cls".'
            )
        return pooled.flatten(1)
    if tokens.dim() == 4:
        return tokens.mean(dim=(2, 3))
    if pooling == "cls":
        return tokens[:, 0]
    if mask is None:
        return tokens.mean(dim=1)
    mask = mask[:, :, None].to(tokens.dtype)
    return (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def probe_vision_tower(config: FusionMatchConfig) -> tuple[int, list[int]]:
    """Size of the pooled vector and channels of each level, found with a forward pass that computes nothing."""
    tower_config = copy.deepcopy(config.vision_config)
    tower_config._attn_implementation = "eager"
    with torch.device("meta"), torch.no_grad():
        tower = build_tower(tower_config, config.vision_pooling).eval()
        if tower.main_input_name != "pixel_values":
            raise ValueError(
                f"`vision_config` is of the type `{tower_config.model_type}`, whose input is "
                f"`{tower.main_input_name}`, not `pixel_values`. Use the configuration of a vision encoder."
            )
        outputs = tower(pixel_values=_dummy_pixels(tower_config), output_hidden_states=True, return_dict=True)
        levels = select_levels(
            config.vision_feature_levels, outputs.last_hidden_state, outputs.get("hidden_states"), "vision"
        )
        pooled = pool_tokens(outputs, None, config.vision_pooling, "vision")
    return pooled.shape[-1], [level.shape[1] if level.dim() == 4 else level.shape[2] for level in levels]
