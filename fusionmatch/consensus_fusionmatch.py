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
        self.vectors = nn.Buffer(torch.zeros(config.num_concepts, config.concept_dim))
        self.graph = nn.Buffer(torch.zeros(config.num_concepts, config.num_concepts))
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


class FusionMatchConceptsMixin:
    """What [`FusionMatchModel`] does with concepts: takes them, and names those that it finds."""

    def _build_consensus(self) -> None:
        concepts = self.config.num_concepts > 0
        self.concept_bank = FusionMatchConceptBank(self.config) if concepts else None
        self.vision_consensus = FusionMatchConsensus(self.config) if concepts else None
        self.text_consensus = FusionMatchConsensus(self.config) if concepts else None

    @torch.no_grad()
    # trf-ignore: TRF033 - a bank comes with a catalogue, after the model was loaded; the configuration follows it
    def set_concepts(self, words: list[str], graph: torch.Tensor, vectors: torch.Tensor) -> None:
        """
        Gives the model a concept bank, in place of one that it may have. The consensus branch is new then and has to
        be trained.

        Args:
            words (`list[str]`):
                The concepts, q of them.
            graph (`torch.Tensor` of shape `(q, q)`):
                Normalised adjacency of the concepts.
            vectors (`torch.Tensor` of shape `(q, w)`):
                Word vectors of the concepts.

        Raises:
            `ValueError`: there are no words, the sizes do not fit, or the model has no fusion branch.
        """
        if self.vision_fusion is None:
            raise ValueError(
                "The model has no fusion branch, which concepts are looked up by. Build it with "
                "`vision_feature_levels` and `text_feature_levels`."
            )
        fits = vectors.ndim == 2 and len(vectors) == len(words) and vectors.shape[1] > 0
        if not words or graph.shape != (len(words), len(words)) or not fits:
            raise ValueError(
                f"Concepts are one word or more; {len(words)} words need a graph of {len(words)} x {len(words)} and "
                f"as many vectors, got a graph of {tuple(graph.shape)} and vectors of {tuple(vectors.shape)}."
            )
        settings = {"concept_dim": vectors.shape[1], "num_concepts": len(words), "concept_words": list(words)}
        # A copy is checked first: a refusal leaves the model as it was.
        type(self.config)(**(self.config.to_dict() | settings))
        for name, value in settings.items():
            setattr(self.config, name, value)
        self._build_consensus()
        scale = self.similarity.logit_scale
        parts = ("concept_bank", "vision_consensus", "text_consensus")
        for name in parts:
            module = getattr(self, name)
            module.apply(self._init_weights)
            module.to(device=scale.device, dtype=scale.dtype).train(self.training)
        self.concept_bank.graph.copy_(graph)
        self.concept_bank.vectors.copy_(vectors)
        self.config.untrained_modules = [n for n in self.config.untrained_modules if n not in parts] + list(parts)

    @torch.no_grad()
    def concepts(self, top_k: int = 5, **inputs: torch.Tensor) -> dict[str, list[list[tuple[str, float]]]]:
        """
        The concept words that the model finds in pictures and texts: those of its evaluation mode, also while it is
        in training.

        Args:
            top_k (`int`, *optional*, defaults to 5):
                Words for each item.
            inputs:
                As for [`~FusionMatchModel.forward`].

        Returns:
            `dict`: for the key `image` and the key `text`, where given, a list for each item of (word, probability),
            most probable first.

        Raises:
            `ValueError`: the model has no concepts.
        """
        if self.concept_bank is None:
            raise ValueError("The model has no concepts. Give it some with `set_concepts` and train it.")
        was_training = self.training
        # Dropout would draw other words each time, and batch normalisations would learn from what is only looked at.
        self.eval()
        try:
            outputs = self(**inputs)
        finally:
            self.train(was_training)
        words = self.config.concept_words or [str(i) for i in range(self.config.num_concepts)]
        found = {}
        for name, output in (("image", outputs.vision_model_output), ("text", outputs.text_model_output)):
            if output is not None:
                best = output.concept_log_probs.exp().topk(min(top_k, len(words)), dim=-1)
                found[name] = [
                    [(words[i], probability) for i, probability in zip(*row, strict=True)]
                    for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                ]
        return found
