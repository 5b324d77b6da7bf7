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
Consensus of the PyTorch FusionMatch model: what words that are used together say of a picture or a text.

After CVSE (arXiv 2007.08883): a bank of concepts, a graph of which of them occur together, a graph convolution over
their word vectors, and attention from a picture's or a text's instance vector over the bank. Nothing of a test set is
used: CVSE's completion of concept labels from other test captions has no place here.
"""

import torch
from torch import nn

from .configuration_fusionmatch import FusionMatchConfig
from .heads_fusionmatch import FusionMatchParameterisedFusion, l2_normalize


class FusionMatchConceptBank(nn.Module):
    """
    Words, their graph and their vectors, saved in the checkpoint; a two-layer graph convolution over them.

    The words themselves are `config.concept_words`. `vectors` (concepts, concept_dim) are word vectors and `graph`
    (concepts, concepts) is the normalised adjacency; [`~FusionMatchModel.set_concepts`] fills both.
    """

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__()
        self.vectors = nn.Buffer(torch.empty(config.num_concepts, config.concept_dim))
        self.graph = nn.Buffer(torch.empty(config.num_concepts, config.num_concepts))
        self.fc1 = nn.Linear(config.concept_dim, config.hidden_size)
        self.activation_fn = nn.LeakyReLU(0.2)
        self.fc2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self) -> torch.Tensor:
        """Concept vectors (concepts, hidden_size), unit length; arXiv 1609.02907, equation 2, twice."""
        hidden = self.activation_fn(self.graph @ self.fc1(self.vectors))
        return l2_normalize(self.graph @ self.fc2(hidden))


class FusionMatchConsensus(nn.Module):
    """The consensus of one modality: an instance vector looks at the concept bank and is fused with what it finds."""

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        # CVSE sharpens its softmax by a fixed 10; here that is the start.
        self.log_sharpness = nn.Parameter(torch.empty(1))
        self.consensus_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fusion = FusionMatchParameterisedFusion(config, 2)

    def forward(
        self, instance: torch.Tensor, concepts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            instance (`torch.Tensor` of shape `(batch, hidden_size)`):
                Instance vectors.
            concepts (`torch.Tensor` of shape `(concepts, hidden_size)`):
                Concept vectors.

        Returns:
            `tuple`: the fused vector and the consensus vector (batch, hidden_size), the log-probabilities of the
            concepts (batch, concepts), and the shares of instance and consensus in the fused vector (batch, 2).
        """
        query = l2_normalize(self.query(self.layer_norm(instance)))
        log_probs = (self.log_sharpness.exp() * (query @ concepts.t())).float().log_softmax(dim=-1)
        consensus = self.consensus_norm(log_probs.exp().to(concepts.dtype) @ concepts)
        fused, shares = self.fusion(torch.stack([instance, consensus], dim=1))
        return fused, consensus, log_probs, shares
