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
"""What the PyTorch FusionMatch models return, and batches that go through them in parts."""

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


def _part(tensor: torch.Tensor, rows: torch.Tensor, length: int | None) -> torch.Tensor:
    return tensor[rows] if length is None else tensor[rows, :length]


@dataclass
class FusionMatchTowerFeatures(ModelOutput):
    """
    What a tower gives to the rest of the model. A frozen tower's features can be computed once, kept, and passed to
    [`FusionMatchModel.forward`] in place of pixels and token ids.

    Args:
        pooled (`torch.FloatTensor` of shape `(batch, tower_size)`):
            The tower's pooled features, input of the plain path.
        levels (`tuple(torch.FloatTensor)` of shapes `(batch, tokens, channels)`):
            Tokens of each feature level, vision levels already pooled to at most `max_level_tokens`.
        attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
            1 for tokens, 0 for padding. Texts only; holds for each level.
    """

    pooled: torch.FloatTensor | None = None
    levels: tuple[torch.FloatTensor, ...] | None = None
    attention_mask: torch.Tensor | None = None

    def part(self, rows: torch.Tensor, length: int | None = None) -> "FusionMatchTowerFeatures":
        """The features of some items, cut to a length where one is given."""
        mask = self.attention_mask
        return FusionMatchTowerFeatures(
            pooled=self.pooled[rows],
            levels=tuple(_part(level, rows, length) for level in self.levels),
            attention_mask=None if mask is None else _part(mask, rows, length),
        )

    def pin_memory(self) -> "FusionMatchTowerFeatures":
        """The same features in pinned memory; a data loader asks for it before a copy to an accelerator."""
        return FusionMatchTowerFeatures(
            pooled=self.pooled.pin_memory(),
            levels=tuple(level.pin_memory() for level in self.levels),
            attention_mask=None if self.attention_mask is None else self.attention_mask.pin_memory(),
        )


@dataclass
class FusionMatchPixels(ModelOutput):
    """
    Pictures as bytes: a quarter of the memory and of the way to an accelerator that their floats take. The model takes
    them in place of `pixel_values`, and makes floats of a part of the batch when its turn comes.

    Args:
        pixel_bytes (`torch.ByteTensor` of shape `(batch, height, width, channels)`):
            Pictures in the size of the tower.
        mean, std (`torch.FloatTensor` of shape `(batch, channels)`):
            What is subtracted from the bytes, and by what the rest is divided.
    """

    pixel_bytes: torch.ByteTensor | None = None
    mean: torch.FloatTensor | None = None
    std: torch.FloatTensor | None = None

    def part(self, rows: torch.Tensor, length: int | None = None) -> "FusionMatchPixels":
        """Some of the pictures."""
        return FusionMatchPixels(pixel_bytes=self.pixel_bytes[rows], mean=self.mean[rows], std=self.std[rows])

    def pin_memory(self) -> "FusionMatchPixels":
        """The same pictures in pinned memory; a data loader asks for it before a copy to an accelerator."""
        return FusionMatchPixels(**{name: value.pin_memory() for name, value in self.items()})

    def normalized(self) -> torch.FloatTensor:
        """Pixels (batch, channels, height, width) as an image processor gives them, channels last in memory."""
        pixels = self.pixel_bytes.float()
        pixels = pixels.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])
        return pixels.permute(0, 3, 1, 2)


@dataclass
class FusionMatchTowerOutput(BaseModelOutputWithPooling):
    """
    Output of [`FusionMatchModel.get_image_features`] and [`FusionMatchModel.get_text_features`].

    Args:
        last_hidden_state (`torch.FloatTensor`):
            Last hidden state of the tower; `(batch, tokens, channels)`, or `(batch, channels, height, width)`.
        pooler_output (`torch.FloatTensor` of shape `(batch, projection_dim)`):
            The embedding before L2 normalisation.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            Hidden states of the tower.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True`):
            Attention weights of the tower, where it has any and runs `attn_implementation="eager"`.
        base_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`):
            Output of the plain path, before normalisation.
        fused_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`, *optional*):
            Output of the fusion branch before the gate, unit length. `None` for a model without fusion.
        instance_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`, *optional*):
            The same of the feature levels alone, without the concepts; equal to `fused_embeds` where there are none.
        consensus_embeds (`torch.FloatTensor` of shape `(batch, projection_dim)`, *optional*):
            The same of the concepts alone. `None` for a model without concepts.
        concept_log_probs (`torch.FloatTensor` of shape `(batch, num_concepts)`, *optional*):
            Log-probabilities of the concepts.
        fusion_weights (`torch.FloatTensor` of shape `(batch, levels)`, *optional*):
            Share of each feature level in the instance vector; rows sum to 1.
        consensus_weights (`torch.FloatTensor` of shape `(batch, 2)`, *optional*):
            Shares of instance and consensus in the fused vector; rows sum to 1.
        fusion_tokens (`torch.FloatTensor` of shape `(batch, tokens, hidden_size)`, *optional*):
            The branch's tokens of all levels after its attention blocks; what the ranking stage reads.
        fusion_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
            1 for tokens, 0 for padding; `None` where nothing is padded.
        fusion_attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True`):
            Attention weights of the branch's blocks, `(batch, heads, tokens, tokens)` over the tokens of all levels;
            the branch keeps them whatever the attention implementation is.
        level_attentions (`tuple(torch.FloatTensor)`, *optional*, returned with `output_attentions=True`):
            For each level the weights `(batch, heads, tokens)` by which its tokens are pooled.
    """

    base_embeds: torch.FloatTensor | None = None
    fused_embeds: torch.FloatTensor | None = None
    instance_embeds: torch.FloatTensor | None = None
    consensus_embeds: torch.FloatTensor | None = None
    concept_log_probs: torch.FloatTensor | None = None
    fusion_weights: torch.FloatTensor | None = None
    consensus_weights: torch.FloatTensor | None = None
    fusion_tokens: torch.FloatTensor | None = None
    fusion_mask: torch.Tensor | None = None
    fusion_attentions: tuple[torch.FloatTensor, ...] | None = None
    level_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class FusionMatchOutput(ModelOutput):
    """
    Output of [`FusionMatchModel.forward`]. Fields of a modality that was not given are `None`.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `return_loss=True`):
            Contrastive loss of image-text similarity.
        logits_per_image (`torch.FloatTensor` of shape `(images, texts)`):
            Scaled cosine similarities.
        logits_per_text (`torch.FloatTensor` of shape `(texts, images)`):
            The same, transposed.
        text_embeds (`torch.FloatTensor` of shape `(texts, projection_dim)`):
            Text embeddings, unit length.
        image_embeds (`torch.FloatTensor` of shape `(images, projection_dim)`):
            Image embeddings, unit length.
        text_model_output ([`FusionMatchTowerOutput`]):
            What [`FusionMatchModel.get_text_features`] returned.
        vision_model_output ([`FusionMatchTowerOutput`]):
            What [`FusionMatchModel.get_image_features`] returned.
    """

    loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_model_output: FusionMatchTowerOutput | None = None
    vision_model_output: FusionMatchTowerOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


# Rows of a batch, and the length to cut them to.
Part = tuple[torch.Tensor, int | None]


def batch_parts(batch: int, mask: torch.Tensor | None, mini_batch_size: int | None = None) -> list[Part]:
    """
    Parts in which a batch goes through the model. Of texts with a mask (batch, length) they are of similar length, so
    that short ones do not pay for the padding to the longest. None where the whole batch at once is best: an
    accelerator is kept busy better by it, unless `mini_batch_size` limits it.
    """
    if mini_batch_size is not None:
        number = -(-batch // mini_batch_size)
    else:
        saves = mask is not None and mask.device.type == "cpu" and not torch.compiler.is_compiling()
        number = min(4, batch // 32) if saves else 1
    if number < 2:
        return []
    size = -(-batch // number)
    if mask is None:
        return [(rows, None) for rows in torch.arange(batch).split(size)]
    # By the last token, not by their number: texts padded in front stay whole.
    lengths = (mask != 0).mul(torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).cpu()
    return [(rows, max(1, int(lengths[rows[-1]]))) for rows in lengths.argsort(stable=True).split(size)]


def embed_in_parts(
    embed: MethodType,
    parts: list[Part],
    inputs: dict[str, torch.Tensor | FusionMatchTowerFeatures | FusionMatchPixels | None],
    recompute: bool = False,
    **kwargs: Any,
) -> FusionMatchTowerOutput:
    """
    A batch through `embed` in parts, merged to what the whole would have given: rows in the order of the batch, tokens
    padded with zeros.

    Args:
        embed (`MethodType`):
            A method of the model; takes `inputs` and `kwargs`, and gives a [`FusionMatchTowerOutput`].
        parts (`list`):
            Rows and lengths.
        inputs (`dict`):
            Tensors of shape (batch, ...), [`FusionMatchTowerFeatures`], [`FusionMatchPixels`]; `None` is left out.
        recompute (`bool`, *optional*, defaults to `False`):
            Whether the backward pass computes each part anew, in the same random state, in place of keeping its
            activations. Gradients are those of the whole batch, memory that of one part (gradient caching, arXiv
            2101.06983, by activation checkpointing, arXiv 1604.06174). The tower's last hidden state is not returned.
    """

    def embed_part(rows: torch.Tensor, length: int | None) -> dict[str, torch.Tensor]:
        cut = {
            name: value.part(rows, length)
            if isinstance(value, (FusionMatchTowerFeatures, FusionMatchPixels))
            else _part(value, rows, length)
            for name, value in inputs.items()
            if value is not None
        }
        output = embed(**cut, **kwargs, return_dict=True)
        return {name: value for name, value in output.items() if not recompute or name != "last_hidden_state"}

    if recompute and torch.is_grad_enabled():
        outputs = [checkpoint(embed_part, *part, use_reentrant=False) for part in parts]
    else:
        outputs = [embed_part(*part) for part in parts]
    order = torch.cat([rows for rows, _ in parts]).argsort()
    merged = {}
    for name, first in outputs[0].items():
        tensors = [output[name] for output in outputs]
        if first.ndim == 3 or name == "fusion_mask":
            longest = max(tensor.shape[1] for tensor in tensors)
            tensors = [
                nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, longest - tensor.shape[1]))
                for tensor in tensors
            ]
        merged[name] = torch.cat(tensors)[order.to(first.device)]
    return FusionMatchTowerOutput(**merged)
