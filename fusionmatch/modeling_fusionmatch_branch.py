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
"""Fusion branch of the PyTorch FusionMatch model: levels, multi-head attention, parameterised fusion."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs

from .configuration_fusionmatch import FusionMatchConfig
from .heads_fusionmatch import FusionMatchGatedResidual, FusionMatchParameterisedFusion
from .outputs_fusionmatch import FusionMatchTowerFeatures


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention (arXiv 1706.03762, equation 1) that also returns its weights."""
    attn_weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    return torch.matmul(attn_weights, value).transpose(1, 2).contiguous(), attn_weights


def expand_mask(
    config: FusionMatchConfig,
    mask: torch.Tensor | None,
    queries: torch.Tensor,
    source: torch.Tensor | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> torch.Tensor | None:
    """A mask (batch, tokens) of the source's padding in the form that the attention to be computed takes."""
    if mask is None:
        return None
    if kwargs.get("output_attentions"):
        # For the eager computation, whatever the configuration says (see FusionMatchAttention).
        return (mask[:, None, None, :] == 0) * torch.finfo(queries.dtype).min
    return create_bidirectional_mask(
        config=config, inputs_embeds=queries, attention_mask=mask, encoder_hidden_states=source
    )


class FusionMatchAttention(nn.Module):
    """Multi-head attention of tokens to each other, or to the tokens of another picture or text."""

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        key_value_states: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        source = hidden_states if key_value_states is None else key_value_states
        source_shape = (*source.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(*input_shape, -1, self.head_dim).transpose(1, 2)
        key = self.k_proj(source).view(source_shape).transpose(1, 2)
        value = self.v_proj(source).view(source_shape).transpose(1, 2)
        # Only the eager computation has weights to give, so it runs whenever they are asked for.
        attention_interface: Callable = eager_attention_forward
        if not kwargs.get("output_attentions"):
            attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
        attn_output, attn_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(attn_output.reshape(*input_shape, -1).contiguous()), attn_weights


class FusionMatchLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = FusionMatchAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attn_output, attn_weights = self.self_attn(self.layer_norm1(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attn_output)
        feed_forward = self.fc2(self.activation_fn(self.fc1(self.layer_norm2(hidden_states))))
        return hidden_states + self.dropout(feed_forward), attn_weights


class FusionMatchLevelPooling(nn.Module):
    """Pools the tokens of one level by multi-head attention from a learned query."""

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = nn.Parameter(torch.empty(config.hidden_size))

    def forward(
        self, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, tokens, d) and (batch, tokens) -> level vector (batch, d) and weights (batch, heads, tokens)."""
        batch, length, size = tokens.shape
        heads = self.layer_norm(tokens).view(batch, length, self.num_heads, -1)
        scores = torch.einsum("bthc,hc->bht", heads, self.query.view(self.num_heads, -1))
        scores = scores.float() / math.sqrt(size // self.num_heads)
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None, :] == 0, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1).to(tokens.dtype)
        return torch.einsum("bht,bthc->bhc", weights, heads).reshape(batch, size), weights


@dataclass
class FusionMatchBranchOutput(ModelOutput):
    """
    What the branch finds in the feature levels, before the concepts and the gate.

    Args:
        instance (`torch.FloatTensor` of shape `(batch, hidden_size)`):
            The level vectors, fused.
        weights (`torch.FloatTensor` of shape `(batch, levels)`):
            Share of each level in it.
        tokens (`torch.FloatTensor` of shape `(batch, tokens, hidden_size)`):
            Tokens of all levels after the attention blocks.
        mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
            1 for tokens, 0 for padding.
        attentions, level_attentions (`tuple(torch.FloatTensor)`):
            As in [`FusionMatchTowerOutput`]; entries are `None` where an implementation keeps no weights.
    """

    instance: torch.FloatTensor | None = None
    weights: torch.FloatTensor | None = None
    tokens: torch.FloatTensor | None = None
    mask: torch.Tensor | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    level_attentions: tuple[torch.FloatTensor, ...] | None = None


class FusionMatchBranch(nn.Module):
    """
    The fusion branch of one modality: feature levels -> self-attention -> level vectors -> fusion. Its `residual`
    brings the result, or what the concepts made of it, into the embedding.
    """

    def __init__(self, config: FusionMatchConfig, level_sizes: list[int]) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.level_norms = nn.ModuleList(nn.LayerNorm(size, eps=config.layer_norm_eps) for size in level_sizes)
        self.level_projections = nn.ModuleList(nn.Linear(size, config.hidden_size) for size in level_sizes)
        self.level_embeddings = nn.Parameter(torch.empty(len(level_sizes), config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(FusionMatchLayer(config) for _ in range(config.num_hidden_layers))
        self.level_poolings = nn.ModuleList(FusionMatchLevelPooling(config) for _ in level_sizes)
        self.fusion = FusionMatchParameterisedFusion(config, len(level_sizes))
        self.residual = FusionMatchGatedResidual(config)

    def _drop_channels(self, level: torch.Tensor) -> torch.Tensor:
        if not self.training or self.feature_dropout.p == 0:
            return level
        return level * self.feature_dropout(torch.ones_like(level[:, :1]))

    def forward(
        self, features: FusionMatchTowerFeatures, **kwargs: Unpack[TransformersKwargs]
    ) -> FusionMatchBranchOutput:
        dtype = self.level_embeddings.dtype
        projected = [
            projection(norm(self._drop_channels(level.to(dtype)))) + self.level_embeddings[i]
            for i, (norm, projection, level) in enumerate(
                zip(self.level_norms, self.level_projections, features.levels, strict=True)
            )
        ]
        lengths = [level.shape[1] for level in projected]
        hidden_states = self.dropout(torch.cat(projected, dim=1))
        level_mask = features.attention_mask
        mask = None if level_mask is None else level_mask.repeat(1, len(lengths))
        attention_mask = expand_mask(self.config, mask, hidden_states, **kwargs)
        attentions = ()
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, attention_mask, **kwargs)
            attentions += (weights,)
        pooled = [
            pooling(tokens, level_mask)
            for pooling, tokens in zip(self.level_poolings, hidden_states.split(lengths, dim=1), strict=True)
        ]
        instance, shares = self.fusion(torch.stack([vector for vector, _ in pooled], dim=1))
        return FusionMatchBranchOutput(
            instance=instance,
            weights=shares,
            tokens=hidden_states,
            mask=mask,
            attentions=attentions,
            level_attentions=tuple(weights for _, weights in pooled),
        )
