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
"""FusionMatch model configuration."""

from collections.abc import Callable
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


# Of the checkpoints that this code writes. From the first release on it grows when a setting changes its name, its
# meaning or its default (a checkpoint leaves out what is at its default), and the step that brings the settings of the
# number before to the next one is added here under that number.
FORMAT_VERSION = 1
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


@strict
class FusionMatchConfig(PreTrainedConfig):
    r"""
    Configuration of a [`FusionMatchModel`]: two encoders ("towers") for images and texts, a plain path from each tower
    to the shared embedding space, and beside it the fusion branch that reads several levels of the tower with
    multi-head attention and enters through a gate.

    Args:
        vision_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a ViT):
            Configuration of the vision tower. Any vision encoder of transformers that takes `pixel_values`.
        text_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a BERT):
            Configuration of the text tower. Any text encoder of transformers that takes `input_ids`.
        projection_dim (`int`, *optional*, defaults to 512):
            Size p of the shared embedding space.
        base_head (`str`, *optional*, defaults to `"mlp"`):
            Head of the plain path from pooled tower features to the embedding space: `"mlp"` (LayerNorm, one hidden
            layer), `"linear"` (one matrix without bias, as CLIP has it) or `"none"` (the pooled features are the
            embedding, as SigLIP has it).
        base_head_dim (`int`, *optional*, defaults to 2048):
            Width of the hidden layer of the `"mlp"` head.
        head_dropout (`float`, *optional*, defaults to 0.0):
            Dropout before the last linear map into the embedding space, in [0, 1): on the hidden layer of the `"mlp"`
            head, and on what the fusion branch found.
        feature_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the channels of tower features that enter the `"mlp"` head and the fusion branch, in [0, 1); the
            same channels for all tokens of an item, because what is dropped token by token is back in their mean. On
            few pictures with frozen towers it is what does most against over-fitting.
        vision_pooling (`str`, *optional*, defaults to `"mean"`):
            How the vision tower's tokens become one vector for the plain path: `"pooler"` (the tower's own
            `pooler_output`), `"cls"` (first token) or `"mean"`.
        text_pooling (`str`, *optional*, defaults to `"mean"`):
            The same for the text tower; `"mean"` leaves padding out.
        vision_feature_levels (`list[int]`, *optional*, defaults to `[-4, -1]`):
            Which hidden states of the vision tower the fusion branch reads. -1 is the tower's last hidden state (after
            its final normalisation), every other number indexes its `hidden_states`. Low levels carry texture and
            colour, high levels meaning. An empty list leaves the branch out.
        text_feature_levels (`list[int]`, *optional*, defaults to `[-1]`):
            The same for the text tower. Both lists are empty or neither is.
        max_level_tokens (`int`, *optional*, defaults to 64):
            Vision levels with more tokens are average-pooled on their grid to at most this many.
        hidden_size (`int`, *optional*, defaults to 256):
            Width d of the fusion branch.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Self-attention blocks over the tokens of all levels together, for each tower. 0 keeps only the pooling.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Heads in those blocks and in the pooling of each level; divides `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 512):
            Width of the feed-forward part of each block.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the blocks and of the `"mlp"` head.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
            Dropout after attention and feed-forward, in [0, 1).
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on attention weights, in [0, 1).
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the branch's layer normalisations.
        fusion_mode (`str`, *optional*, defaults to `"gated"`):
            How level vectors are fused into one: `"weighted_sum"` (one softmax weight a level), `"gated"` (weights
            predicted from the vectors themselves, for each example) or `"concat"` (a linear map of all of them).
        num_concepts (`int`, *optional*, defaults to 0):
            Concepts q of the consensus branch; 0 leaves it out. Set by [`~FusionMatchModel.set_concepts`].
        concept_dim (`int`, *optional*, defaults to 384):
            Size of the concepts' word vectors. Set by [`~FusionMatchModel.set_concepts`].
        concept_words (`list[str]`, *optional*, defaults to `[]`):
            The concepts as words, `num_concepts` of them. Set by [`~FusionMatchModel.set_concepts`].
        num_ranking_layers (`int`, *optional*, defaults to 2):
            Cross-attention blocks of the ranking stage, for each side. Only [`FusionMatchForImageTextRetrieval`] has
            one.
        gate_init_value (`float`, *optional*, defaults to 0.0):
            Start of the gate g through which the branch enters, `base + tanh(g) * fused`. At 0 the model equals its
            plain path.
        logit_scale_init_value (`float`, *optional*, defaults to 3.912):
            Start of the log of the similarity scale: a scale of 50. In some hundred steps it hardly moves from where
            it starts; CLIP's ln(1 / 0.07) = 2.6592 was too low with five captions a picture and with LoRA on a
            catalogue. Heads alone in few steps do better from about 20 (docs/lab-notes.md).
        logit_bias_init_value (`float`, *optional*):
            Start of the similarity bias of the sigmoid loss. `None` leaves the bias out.
        max_logit_scale (`float`, *optional*, defaults to 100.0):
            Ceiling of the similarity scale, as in CLIP. `None` for no ceiling.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the normal initialisation of the new weights.
        untrained_modules (`list[str]`, *optional*, defaults to `[]`):
            Modules whose weights are still those of the initialisation. Filled by the `from_*_pretrained`
            constructors, emptied by training; an adapter carries these modules whole.
        format_version (`int`, *optional*, defaults to 1):
            Number of the checkpoint's format. Written by `save_pretrained`; settings of an older one are brought to
            the present one on loading.

    Raises:
        `ValueError`: two settings contradict each other; the message names both values.

    Example:

    ```python
    >>> from fusionmatch import FusionMatchConfig, FusionMatchModel

    >>> config = FusionMatchConfig(vision_config={"model_type": "vit"}, text_config={"model_type": "bert"})
    >>> model = FusionMatchModel(config)
    ```"""

    model_type = "fusionmatch"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert"),
    }

    vision_config: PreTrainedConfig | dict | None = None
    text_config: PreTrainedConfig | dict | None = None
    projection_dim: int = 512
    base_head: Literal["mlp", "linear", "none"] = "mlp"
    base_head_dim: int = 2048
    head_dropout: float | int = 0.0
    feature_dropout: float | int = 0.0
    vision_pooling: Literal["pooler", "cls", "mean"] = "mean"
    text_pooling: Literal["pooler", "cls", "mean"] = "mean"
    vision_feature_levels: list[int] | tuple[int, ...] = (-4, -1)
    text_feature_levels: list[int] | tuple[int, ...] = (-1,)
    max_level_tokens: int = 64
    hidden_size: int = 256
    num_hidden_layers: int = 1
    num_attention_heads: int = 8
    intermediate_size: int = 512
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_dropout: float | int = 0.0
    layer_norm_eps: float = 1e-6
    fusion_mode: Literal["weighted_sum", "gated", "concat"] = "gated"
    num_concepts: int = 0
    concept_dim: int = 384
    concept_words: list[str] | tuple[str, ...] = ()
    num_ranking_layers: int = 2
    gate_init_value: float | int = 0.0
    logit_scale_init_value: float | int = 3.912
    logit_bias_init_value: float | int | None = None
    max_logit_scale: float | int | None = 100.0
    initializer_range: float = 0.02
    untrained_modules: list[str] | tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        # A tuple becomes a list in JSON; lists throughout make a reloaded configuration equal to the saved one.
        self.vision_feature_levels = list(self.vision_feature_levels)
        self.text_feature_levels = list(self.text_feature_levels)
        self.concept_words = list(self.concept_words)
        self.untrained_modules = list(self.untrained_modules)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "FusionMatchConfig":
        """
        Like [`PreTrainedConfig.from_dict`], but refuses the configuration of another model instead of filling a
        FusionMatch model with random weights, and brings the settings of an older checkpoint to the present format.

        Raises:
            `ValueError`: `config_dict` belongs to another `model_type`, or to a checkpoint of a newer format.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"This is the configuration of a `{model_type}` model, not of a `{cls.model_type}` one. To build "
                "FusionMatch on it, use `FusionMatchModel.from_dual_encoder_pretrained` (CLIP, SigLIP and their kin) "
                "or `FusionMatchModel.from_vision_text_pretrained` (one vision and one text encoder)."
            )
        # Checkpoints from before there was a number have the first format.
        written = config_dict.get("format_version", 1)
        if not isinstance(written, int) or not 1 <= written <= FORMAT_VERSION:
            raise ValueError(
                f"This checkpoint has the format {written!r}, and this FusionMatch reads 1 to {FORMAT_VERSION}. "
                "Upgrade: pip install -U fusionmatch"
            )
        for number in range(written, FORMAT_VERSION):
            config_dict = MIGRATIONS[number](dict(config_dict))
        return super().from_dict(config_dict | {"format_version": FORMAT_VERSION}, **kwargs)

    def validate_architecture(self) -> None:
        """Cross-field checks; run by the strict dataclass on construction and by `save_pretrained`."""
        for name in ("vision_config", "text_config"):
            tower = getattr(self, name)
            if getattr(tower, "vision_config", None) is not None and getattr(tower, "text_config", None) is not None:
                raise ValueError(
                    f"`{name}` is the configuration of a whole `{tower.model_type}` model with two towers. Pass its "
                    f"`{name}` alone, or load the model with `FusionMatchModel.from_dual_encoder_pretrained`."
                )
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"`format_version` is that of the checkpoints this FusionMatch writes, {FORMAT_VERSION}, got "
                f"{self.format_version}. Leave it out."
            )
        positive = ("projection_dim", "hidden_size", "num_attention_heads", "max_level_tokens", "base_head_dim")
        for name in (*positive, "concept_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("num_hidden_layers", "num_ranking_layers", "num_concepts"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if self.num_concepts and not self.vision_feature_levels:
            raise ValueError(
                f"`num_concepts` is {self.num_concepts}, but there are no feature levels: concepts are looked up by "
                "what the fusion branch finds. Name levels, or set `num_concepts` to 0."
            )
        if self.concept_words and len(self.concept_words) != self.num_concepts:
            raise ValueError(
                f"`concept_words` holds {len(self.concept_words)} words, but `num_concepts` is {self.num_concepts}."
            )
        if self.max_logit_scale is not None and self.max_logit_scale <= 0:
            raise ValueError(
                f"`max_logit_scale` must be above 0, or `None` for no ceiling, got {self.max_logit_scale}."
            )
        for name in ("head_dropout", "feature_dropout", "hidden_dropout_prob", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in [0, 1), got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads != 0:
            raise ValueError(
                f"The hidden size ({self.hidden_size}) is not a multiple of the number of attention heads "
                f"({self.num_attention_heads})."
            )
        if bool(self.vision_feature_levels) != bool(self.text_feature_levels):
            raise ValueError(
                f"`vision_feature_levels` ({self.vision_feature_levels}) and `text_feature_levels` "
                f"({self.text_feature_levels}) must both name levels, or both be empty for a model without fusion."
            )


__all__ = ["FusionMatchConfig"]
