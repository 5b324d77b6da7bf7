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
"""Heads of the PyTorch FusionMatch model: the plain path, the fusion of vectors and the similarity."""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_fusionmatch import FusionMatchConfig


def l2_normalize(embeds: torch.Tensor) -> torch.Tensor:
    """Unit vectors along the last dimension; the small floor keeps a zero vector finite."""
    return embeds / embeds.norm(p=2, dim=-1, keepdim=True).clamp(min=1e-12)


class FusionMatchHead(nn.Module):
    """The plain path: pooled tower features (batch, tower_size) -> embedding (batch, projection_dim)."""

    def __init__(self, config: FusionMatchConfig, tower_size: int) -> None:
        super().__init__()
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.layer_norm = nn.LayerNorm(tower_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(tower_size, config.base_head_dim)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.head_dropout)
        self.fc2 = nn.Linear(config.base_head_dim, config.projection_dim)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.activation_fn(self.fc1(self.layer_norm(self.feature_dropout(pooled))))))


class FusionMatchParameterisedFusion(nn.Module):
    r"""
    Fuses K vectors into one with learned shares (arXiv 2412.19184 names a parameterised feature fusion; its formulas
    could not be had, so each reading is a mode):

    - `"weighted_sum"`: sum of the vectors with softmax weights, K parameters.
    - `"gated"`: the same with weights predicted from the vectors themselves, for each example.
    - `"concat"`: a linear map of the concatenated vectors; the share reported is that of each part's norm.
    """

    def __init__(self, config: FusionMatchConfig, num_vectors: int) -> None:
        super().__init__()
        self.mode = config.fusion_mode
        if self.mode == "weighted_sum":
            self.weight = nn.Parameter(torch.empty(num_vectors))
        elif self.mode == "gated":
            self.gate = nn.Linear(num_vectors * config.hidden_size, num_vectors)
        else:
            self.parts = nn.ModuleList(
                nn.Linear(config.hidden_size, config.hidden_size, bias=i == 0) for i in range(num_vectors)
            )

    def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, K, d) -> fused (batch, d) and shares (batch, K) that sum to 1."""
        if self.mode == "concat":
            parts = torch.stack([part(vectors[:, i]) for i, part in enumerate(self.parts)], dim=1)
            norms = parts.detach().float().norm(dim=-1)
            return parts.sum(dim=1), norms / norms.sum(dim=1, keepdim=True).clamp(min=1e-12)
        if self.mode == "weighted_sum":
            weights = self.weight.float().softmax(dim=0).expand(vectors.shape[0], -1)
        else:
            weights = self.gate(vectors.flatten(1)).float().softmax(dim=-1)
        return (weights.to(vectors.dtype)[:, :, None] * vectors).sum(dim=1), weights


class FusionMatchGatedResidual(nn.Module):
    """Lets a vector of the branch into the embedding, `base + tanh(g) * |base| * fused`; g is 0 at first."""

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.head_dropout)
        self.projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.gate = nn.Parameter(torch.empty(1))

    def forward(self, base: torch.Tensor, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, projection_dim) and (batch, hidden_size) -> the embedding, and `fused` of unit length."""
        fused = self.project(vector)
        return base + torch.tanh(self.gate) * base.norm(dim=-1, keepdim=True) * fused, fused

    def project(self, vector: torch.Tensor) -> torch.Tensor:
        """A vector of the branch as an embedding of its own, unit length."""
        return l2_normalize(self.projection(self.dropout(vector)))


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
        return self.scale(text_embeds @ image_embeds.t().to(text_embeds.device))

    def pairs(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """Unit vectors (pairs, p) of texts and of pictures -> logits (pairs,)."""
        return self.scale((text_embeds * image_embeds).sum(dim=-1))

    def scale(self, cosines: torch.Tensor) -> torch.Tensor:
        """Cosines of any shape -> logits."""
        # The ceiling holds the value, not the gradient: a scale that overshot it can come back.
        log_scale = self.logit_scale - (self.logit_scale - self.max_log_scale).clamp(min=0).detach()
        logits = cosines * log_scale.exp().to(cosines.device)
        return logits if self.logit_bias is None else logits + self.logit_bias.to(cosines.device)


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
