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
"""PyTorch FusionMatch model with a ranking stage."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_fusionmatch import FusionMatchConfig
from .losses_fusionmatch import infonce_loss, matching_loss
from .modeling_fusionmatch import FusionMatchModel, FusionMatchPreTrainedModel
from .modeling_fusionmatch_branch import (
    FusionMatchAttention,
    FusionMatchLevelPooling,
    expand_mask,
)
from .outputs_fusionmatch import FusionMatchOutput, FusionMatchPixels, FusionMatchTowerFeatures, FusionMatchTowerOutput


@dataclass
class FusionMatchRankingOutput(FusionMatchOutput):
    """
    Output of [`FusionMatchForImageTextRetrieval.forward`]: that of [`FusionMatchModel.forward`], and

    Args:
        match_logits (`torch.FloatTensor` of shape `(pairs,)`, *optional*):
            Log-odds that the i-th text and the i-th picture belong together; their sigmoid is the probability.
            `None` where there are not as many texts as pictures.
    """

    match_logits: torch.FloatTensor | None = None


class FusionMatchCrossLayer(GradientCheckpointingLayer):
    """Pre-norm block in which the tokens of one side look at those of the other."""

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.source_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attn = FusionMatchAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        source: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attn_output, attn_weights = self.cross_attn(
            self.layer_norm1(hidden_states), attention_mask, self.source_norm(source), **kwargs
        )
        hidden_states = hidden_states + self.dropout(attn_output)
        feed_forward = self.fc2(self.activation_fn(self.fc1(self.layer_norm2(hidden_states))))
        return hidden_states + self.dropout(feed_forward), attn_weights


class FusionMatchRanker(nn.Module):
    """
    Looks at a picture and a text together: multi-head cross-attention both ways between the tokens of their fusion
    branches, pooling by a learned query each, and a small head on the two vectors, their product and their distance.

    What it finds is added to the similarity of the two embeddings; its last layer starts at zero. An untrained ranking
    stage thus ranks as the embeddings do.
    """

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.text_layers = nn.ModuleList(FusionMatchCrossLayer(config) for _ in range(config.num_ranking_layers))
        self.vision_layers = nn.ModuleList(FusionMatchCrossLayer(config) for _ in range(config.num_ranking_layers))
        self.text_pooling = FusionMatchLevelPooling(config)
        self.vision_pooling = FusionMatchLevelPooling(config)
        self.fc1 = nn.Linear(4 * config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.fc2 = nn.Linear(config.intermediate_size, 1)
        # Of the similarity's logit; and the log-odds of a pair at random.
        self.similarity_weight = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(1))

    def forward(
        self,
        texts: torch.Tensor,
        text_mask: torch.Tensor | None,
        images: torch.Tensor,
        similarity_logits: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """
        Args:
            texts (`torch.Tensor` of shape `(pairs, text tokens, hidden_size)`):
                Tokens of each pair's text.
            text_mask (`torch.Tensor` of shape `(pairs, text tokens)`, *optional*):
                1 for tokens, 0 for padding.
            images (`torch.Tensor` of shape `(pairs, image tokens, hidden_size)`):
                Tokens of each pair's picture.
            similarity_logits (`torch.Tensor` of shape `(pairs,)`):
                Scaled similarity of the two embeddings.

        Returns:
            `torch.Tensor` of shape `(pairs,)`: log-odds that they belong together.
        """
        for text_layer, vision_layer in zip(self.text_layers, self.vision_layers, strict=True):
            seen, _ = text_layer(texts, images, None, **kwargs)
            mask = expand_mask(self.config, text_mask, images, texts, **kwargs)
            images, _ = vision_layer(images, texts, mask, **kwargs)
            texts = seen
        text, _ = self.text_pooling(texts, text_mask)
        image, _ = self.vision_pooling(images)
        features = torch.cat([text, image, text * image, (text - image).abs()], dim=-1)
        found = self.fc2(self.dropout(self.activation_fn(self.fc1(features)))).squeeze(-1)
        return self.similarity_weight * similarity_logits + self.bias + found


class FusionMatchForImageTextRetrieval(FusionMatchPreTrainedModel):
    r"""
    FusionMatch with a ranking stage: the embeddings find the first candidates for a query among many, and
    [`FusionMatchRanker`] looks at the query and each candidate together to put them in order.

    Args:
        config ([`FusionMatchConfig`]):
            Configuration; `num_ranking_layers` is the depth of the ranking stage.

    Raises:
        `ValueError`: the configuration has no feature levels.

    Example:

    ```python
    >>> from fusionmatch import FusionMatchForImageTextRetrieval

    >>> model = FusionMatchForImageTextRetrieval.from_pretrained("path/to/a/FusionMatchModel")  # ranking stage is new
    ```"""

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__(config)
        if not config.vision_feature_levels:
            raise ValueError(
                "The ranking stage reads the tokens of the fusion branch, and this configuration has no feature "
                "levels. Name some in `vision_feature_levels` and `text_feature_levels`."
            )
        self.fusionmatch = FusionMatchModel(config)
        self.ranker = FusionMatchRanker(config)

        self.post_init()

    @classmethod
    def from_dual_encoder(cls, model: FusionMatchModel) -> "FusionMatchForImageTextRetrieval":
        """A new ranking stage on a model, which becomes part of it; ranks as that model does until it is trained."""
        config = model.config
        config.untrained_modules = [*config.untrained_modules, "ranker"]
        # Its own weights, if only for a moment: a constructor has no other way to build the parts.
        whole = cls(config).to(device=model.device, dtype=model.dtype)
        whole.fusionmatch = model
        return whole

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FusionMatchRanker):
            init.zeros_(module.fc2.weight)
            init.ones_(module.similarity_weight)
            # A batch holds many pairs that do not belong together for each that does.
            init.constant_(module.bias, -10.0)

    def train(self, mode: bool = True) -> "FusionMatchForImageTextRetrieval":
        """
        Like [`FusionMatchModel.train`]; a model whose embeddings are frozen as a whole keeps all of that part in
        evaluation mode.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.fusionmatch.parameters()):
            self.fusionmatch.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.fusionmatch.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.fusionmatch.set_input_embeddings(value)

    def match(
        self,
        text_output: FusionMatchTowerOutput,
        image_output: FusionMatchTowerOutput,
        text_indices: torch.LongTensor,
        image_indices: torch.LongTensor,
        similarity_logits: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """
        Looks at chosen pairs of texts and pictures together.

        Args:
            text_output, image_output ([`FusionMatchTowerOutput`]):
                What the model said of texts and pictures alone.
            text_indices, image_indices (`torch.LongTensor` of shape `(pairs,)`):
                The pairs.
            similarity_logits (`torch.Tensor` of shape `(pairs,)`):
                Scaled similarity of each pair's embeddings.

        Returns:
            `torch.Tensor` of shape `(pairs,)`: log-odds that they belong together.
        """
        mask = text_output.fusion_mask
        return self.ranker(
            text_output.fusion_tokens[text_indices],
            None if mask is None else mask[text_indices],
            image_output.fusion_tokens[image_indices],
            similarity_logits,
            **kwargs,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | FusionMatchPixels | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        vision_features: FusionMatchTowerFeatures | None = None,
        text_features: FusionMatchTowerFeatures | None = None,
        product_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        mini_batch_size: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FusionMatchRankingOutput:
        r"""
        As [`FusionMatchModel.forward`], whose arguments it takes; where there are as many texts as pictures, also
        looks at the i-th text and the i-th picture together. The loss is then the sum of the contrastive and the
        matching loss ([`~fusionmatch.losses_fusionmatch.matching_loss`]).

        Returns:
            [`FusionMatchRankingOutput`]
        """
        outputs = self.fusionmatch(
            input_ids,
            pixel_values,
            attention_mask,
            token_type_ids,
            position_ids,
            interpolate_pos_encoding,
            vision_features,
            text_features,
            product_ids,
            return_loss=False,
            mini_batch_size=mini_batch_size,
            return_dict=True,
            **kwargs,
        )
        match_logits, loss = None, None
        logits = outputs.logits_per_text
        if logits is not None and logits.shape[0] == logits.shape[1]:
            pairs = torch.arange(len(logits), device=logits.device)
            match_logits = self.match(
                outputs.text_model_output, outputs.vision_model_output, pairs, pairs, logits.diagonal(), **kwargs
            )
        if return_loss:
            if match_logits is None:
                raise ValueError(
                    "`return_loss=True` needs as many pictures as texts, got "
                    f"{0 if outputs.image_embeds is None else len(outputs.image_embeds)} pictures and "
                    f"{0 if outputs.text_embeds is None else len(outputs.text_embeds)} texts."
                )
            positives = None if product_ids is None else product_ids[:, None] == product_ids[None, :]
            loss = infonce_loss(logits, positives) + self.matching_loss(
                outputs, positives, mini_batch_size=mini_batch_size, **kwargs
            )
        return FusionMatchRankingOutput(
            **(dict(outputs) | {"loss": loss, "match_logits": match_logits}),
        )

    @torch.no_grad()
    def start_from_similarity(
        self, logits_per_text: torch.Tensor, positives: torch.Tensor, reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        """
        Sets the weight of the similarity and the bias to the log-odds that linear discriminant analysis finds between
        pairs and their hard negatives. How similarities lie differs from base to base by more than a training moves
        two parameters.

        Args:
            logits_per_text (`torch.Tensor` of shape `(texts, images)`):
                Scaled similarities of a batch.
            positives (`torch.BoolTensor` of shape `(texts, images)`):
                True where text and image belong together.
            reduce (`Callable`):
                The mean of a tensor over all processes.
        """
        logits = logits_per_text.float()
        negatives = logits.masked_fill(positives, -torch.inf)
        # As matching_loss draws them.
        shares = (negatives.softmax(dim=0).nan_to_num() + negatives.softmax(dim=1).nan_to_num()) * ~positives
        means, variances = [], []
        for weights in (positives.float(), shares):
            weights = weights / weights.sum().clamp(min=1e-12)
            means.append((weights * logits).sum())
            variances.append((weights * (logits - means[-1]).square()).sum())
        right, wrong, variance = reduce(torch.stack([*means, (variances[0] + variances[1]) / 2]))
        weight = ((right - wrong) / variance.clamp(min=1e-6)).clamp(1e-3, 1)
        self.ranker.similarity_weight.fill_(weight)
        self.ranker.bias.fill_(-weight * (right + wrong) / 2)

    def matching_loss(
        self,
        outputs: FusionMatchOutput,
        positives: torch.Tensor | None = None,
        ignored: torch.Tensor | None = None,
        mini_batch_size: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """[`~fusionmatch.losses_fusionmatch.matching_loss`] of a batch's outputs, some pairs at a time."""

        def match_part(text_indices: torch.LongTensor, image_indices: torch.LongTensor) -> torch.Tensor:
            return self.match(
                outputs.text_model_output,
                outputs.vision_model_output,
                text_indices,
                image_indices,
                outputs.logits_per_text[text_indices, image_indices],
                **kwargs,
            )

        def match(*indices: torch.LongTensor) -> torch.Tensor:
            if mini_batch_size is None:
                return match_part(*indices)
            parts = zip(*(index.split(mini_batch_size) for index in indices), strict=True)
            return torch.cat([checkpoint(match_part, *part, use_reentrant=False) for part in parts])

        return matching_loss(outputs.logits_per_text, match, positives, sample=self.training, ignored=ignored)


__all__ = ["FusionMatchForImageTextRetrieval", "FusionMatchRankingOutput"]
