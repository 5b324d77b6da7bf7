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
"""Heads of the PyTorch FusionMatch model: the plain path, the similarity and its loss."""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_fusionmatch import FusionMatchConfig


def image_text_contrastive_loss(logits_per_text: torch.Tensor, positives: torch.Tensor | None = None) -> torch.Tensor:
    r"""
    Symmetric InfoNCE with any number of positives, mean over texts and over images.

    Each row's target is uniform over its positives (soft targets), so that the variants and further pictures of a
    product are never its negatives. With one positive a row it is CLIP's loss (arXiv 2103.00020, figure 3).

    Args:
        logits_per_text (`torch.Tensor` of shape `(texts, images)`):
            Scaled similarities.
        positives (`torch.BoolTensor` of shape `(texts, images)`, *optional*):
            True where text and image belong together. Defaults to the diagonal. Rows (or columns) without a positive
            do not count.

    Returns:
        `torch.Tensor`: the loss, a scalar.
    """
    logits_per_text = logits_per_text.float()
    if positives is None:
        positives = torch.eye(*logits_per_text.shape, dtype=torch.bool, device=logits_per_text.device)

    def one_way(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
        targets = positives.to(logits.dtype)
        count = targets.sum(dim=1)
        cross_entropy = -(nn.functional.log_softmax(logits, dim=1) * targets).sum(dim=1) / count.clamp(min=1)
        return cross_entropy.sum() / (count > 0).sum().clamp(min=1)

    return (one_way(logits_per_text, positives) + one_way(logits_per_text.t(), positives.t())) / 2


class FusionMatchHead(nn.Module):
    """The plain path: pooled tower features (batch, tower_size) -> embedding (batch, projection_dim)."""

    def __init__(self, config: FusionMatchConfig, tower_size: int) -> None:
        super().__init__()
        self.pooled_dropout = nn.Dropout(config.pooled_dropout)
        self.layer_norm = nn.LayerNorm(tower_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(tower_size, config.base_head_dim)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.base_head_dropout)
        self.fc2 = nn.Linear(config.base_head_dim, config.projection_dim)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.activation_fn(self.fc1(self.layer_norm(self.pooled_dropout(pooled))))))


class FusionMatchSimilarity(nn.Module):
    """Scale and bias of the similarity. A module of its own, so that LoRA's `modules_to_save` can train it."""

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__()
        # Shape (1,) rather than a scalar: FSDP2 refuses parameters without dimensions.
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1)) if config.logit_bias_init_value is not None else None
        self.max_log_scale = math.inf if config.max_logit_scale is None else math.log(config.max_logit_scale)

    def forward(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Unit vectors (texts, p) and (images, p) -> logits (texts, images)."""
        # The ceiling holds the value, not the gradient: a scale that overshot it can come back.
        log_scale = self.logit_scale - (self.logit_scale - self.max_log_scale).clamp(min=0).detach()
        scale = log_scale.exp()
        logits = text_embeds @ image_embeds.t().to(text_embeds.device) * scale.to(text_embeds.device)
        return logits if self.logit_bias is None else logits + self.logit_bias.to(text_embeds.device)


def build_head(config: FusionMatchConfig, tower: str, tower_size: int) -> nn.Module:
    """The plain path of one tower; raises a worded `ValueError` where `base_head="none"` does not fit its size."""
    if config.base_head == "mlp":
        return FusionMatchHead(config, tower_size)
    if config.base_head == "linear":
        return nn.Linear(tower_size, config.projection_dim, bias=False)
    if tower_size != config.projection_dim:
        raise ValueError(
            f'`base_head="none"` takes the {tower} tower\'s pooled features as embedding, so `projection_dim` '
            f'({config.projection_dim}) must equal their size ({tower_size}). Set it so, or use `base_head="linear"`.'
        )
    return nn.Identity()
