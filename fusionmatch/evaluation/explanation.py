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
"""What decided that a picture and a text match: levels, heads, places, words and concepts, and a figure of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..modeling_fusionmatch import FusionMatchModel
from ..outputs_fusionmatch import FusionMatchTowerFeatures, FusionMatchTowerOutput
from ..towers_fusionmatch import level_grid
from .inputs import image_inputs, text_inputs


@dataclass
class SideReading:
    """
    What one side, the picture or the text, contributes.

    Args:
        levels (`dict[int, float]`):
            For each feature level what the cosine loses without it.
        level_shares (`dict[int, float]`):
            Share of each level in the fusion; sums to 1. Without occlusion: what the module itself says.
        heads (`list[float]`):
            For each head of the pooling what the cosine loses without it.
        attention (`torch.FloatTensor` of shape `(heads, tokens)`):
            Where each head looks, in the tokens of all levels, through the attention blocks; rows sum to 1.
        concepts (`list[tuple[str, float]]`):
            Most probable concepts; empty for a model without.
        consensus (`float`):
            What the cosine loses without all concepts; 0 for a model without.
        without_concept (`dict[str, float]`):
            For each of `concepts` what the cosine loses without it.
    """

    levels: dict[int, float]
    level_shares: dict[int, float]
    heads: list[float]
    attention: torch.Tensor
    concepts: list[tuple[str, float]]
    consensus: float = 0.0
    without_concept: dict[str, float] = field(default_factory=dict)


@dataclass
class Explanation:
    """
    Reading of one picture with one text.

    Args:
        cosine (`float`):
            Similarity of the two embeddings, in [-1, 1].
        plain_cosine (`float`):
            The same of the plain paths alone, without levels, heads and concepts.
        image, text ([`SideReading`]):
            The two sides.
        image_maps (`dict[int, torch.FloatTensor]`):
            For each vision level that has a grid, how much attention each place gets, (heads, rows, columns).
        words (`list[tuple[str, float]]`):
            The text's words with the attention that each gets, over all heads and levels; sums to 1.
    """

    cosine: float
    plain_cosine: float
    image: SideReading
    text: SideReading
    image_maps: dict[int, torch.Tensor]
    words: list[tuple[str, float]]


@torch.no_grad()
def explain(model: nn.Module, processor: Any, image: Image.Image, text: str, top_k: int = 5) -> Explanation:
    """
    Reads what decided the similarity of a picture and a text.

    What a level or head is worth is measured by leaving it out (its part of the level vectors at zero), and so is what
    a concept is worth (its part of the consensus vector). Where a head looks is the pooling's attention traced back
    through the attention blocks by attention rollout (arXiv 2005.00928).

    Args:
        model ([`FusionMatchModel`], or around it a `PeftModel` or [`FusionMatchForImageTextRetrieval`]):
            The model.
        processor ([`FusionMatchProcessor`]):
            Its processor.
        image (`PIL.Image.Image`):
            The picture.
        text (`str`):
            The text.
        top_k (`int`, *optional*, defaults to 5):
            Concepts of each side.

    Returns:
        [`Explanation`]

    Raises:
        `ValueError`: the model has no fusion branch.
    """
    core: FusionMatchModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    core = getattr(core, "fusionmatch", core)
    config = core.config
    if core.vision_fusion is None:
        raise ValueError(
            "The model has no fusion branch, hence no levels, heads or concepts to read. Name levels in "
            "`vision_feature_levels` and `text_feature_levels`."
        )
    was_training = core.training
    core.eval()
    pixels = image_inputs(processor, [image]).to(core.device, core.dtype)
    tokens = {
        name: tensor.to(core.device) for name, tensor in text_inputs(processor, [text], config.text_config).items()
    }
    shapes = core.get_image_features(pixels, output_hidden_states=True)
    features = {"vision": core.encode_tower(pixel_values=pixels), "text": core.encode_tower(**tokens)}

    def run(**kwargs: Any) -> Any:
        return core(vision_features=features["vision"], text_features=features["text"], **kwargs)

    outputs = run(output_attentions=True)
    cosine = _cosine(outputs.image_embeds, outputs.text_embeds)
    sides, found = {}, {"vision": outputs.vision_model_output, "text": outputs.text_model_output}
    for tower, output in found.items():
        levels = getattr(config, f"{tower}_feature_levels")
        branch = getattr(core, f"{tower}_fusion")
        without = {}
        for level in range(len(levels)):
            with _left_out(branch, level=level):
                without[levels[level]] = cosine - _cosine(*_embeds(run()))
        heads = []
        for head in range(config.num_attention_heads):
            with _left_out(branch, head=head):
                heads.append(cosine - _cosine(*_embeds(run())))
        concepts = _concepts(config.concept_words, output, top_k)
        losses = {}
        for word in (None, *(word for word, _ in concepts)) if concepts else ():
            left = list(range(config.num_concepts)) if word is None else [config.concept_words.index(word)]
            with _concepts_left_out(core, tower, output, left):
                losses[word] = cosine - _cosine(*_embeds(run()))
        sides[tower] = SideReading(
            levels=without,
            level_shares=dict(zip(levels, output.fusion_weights[0].tolist(), strict=True)),
            heads=heads,
            attention=_rollout(output),
            concepts=concepts,
            consensus=losses.pop(None, 0.0),
            without_concept=losses,
        )
    maps = _maps(core, features["vision"], shapes, sides["vision"].attention, pixels)
    words = _words(processor, tokens["input_ids"][0], text, sides["text"].attention.mean(dim=0))
    core.train(was_training)
    plain = _cosine(*(output.base_embeds for output in found.values()))
    return Explanation(cosine, plain, sides["vision"], sides["text"], maps, words)


def _embeds(outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return outputs.image_embeds, outputs.text_embeds


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return nn.functional.cosine_similarity(first.float(), second.float()).item()


@contextmanager
def _left_out(branch: nn.Module, level: int | None = None, head: int | None = None) -> Iterator[None]:
    """Puts a level's vector, or a head's part of every level's vector, to zero."""

    def hook(module: nn.Module, arguments: Any, result: tuple[torch.Tensor, torch.Tensor]) -> Any:
        vector, weights = result
        vector = vector.clone()
        part = vector if head is None else vector.view(len(vector), module.num_heads, -1)[:, head]
        part.zero_()
        return vector, weights

    poolings = branch.level_poolings if level is None else [branch.level_poolings[level]]
    handles = [pooling.register_forward_hook(hook) for pooling in poolings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _concepts_left_out(
    core: FusionMatchModel, tower: str, output: FusionMatchTowerOutput, left: list[int]
) -> Iterator[None]:
    """Takes the part of some concepts out of the consensus vector, before it is normalised."""
    vectors = core.concept_bank()[left]
    part = output.concept_log_probs.exp()[:, left].to(vectors.dtype) @ vectors

    def hook(module: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (arguments[0] - part,)

    handle = getattr(core, f"{tower}_consensus").consensus_norm.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _rollout(output: FusionMatchTowerOutput) -> torch.Tensor:
    """(heads, tokens of all levels): the pooling's weights, levels by their share, traced back through the blocks."""
    shares = output.fusion_weights[0].float()
    pooled = torch.cat([share * w[0].float() for share, w in zip(shares, output.level_attentions, strict=True)], dim=1)
    for weights in reversed(output.fusion_attentions):
        # Half of a block's output is its input (the residual), half what its heads looked at.
        pooled = pooled / 2 + pooled @ weights[0].float().mean(dim=0) / 2
    return (pooled / pooled.sum(dim=1, keepdim=True)).cpu()


def _concepts(words: Sequence[str], output: FusionMatchTowerOutput, top_k: int) -> list[tuple[str, float]]:
    if output.concept_log_probs is None:
        return []
    best = output.concept_log_probs[0].exp().topk(min(top_k, len(words)))
    return [(words[i], value) for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _maps(
    core: FusionMatchModel,
    features: FusionMatchTowerFeatures,
    shapes: Any,
    attention: torch.Tensor,
    pixels: torch.Tensor,
) -> dict[int, torch.Tensor]:
    config = core.config
    maps = {}
    parts = attention.split([level.shape[1] for level in features.levels], dim=1)
    for level, part in zip(config.vision_feature_levels, parts, strict=True):
        state = shapes.last_hidden_state if level == -1 else shapes.hidden_states[level]
        grid = level_grid(state.shape, config.max_level_tokens, tuple(pixels.shape[-2:]))
        if grid is not None:
            leading, rows, columns = grid
            maps[level] = part[:, leading:].unflatten(1, (rows, columns))
    return maps


def _words(processor: Any, ids: torch.Tensor, text: str, attention: torch.Tensor) -> list[tuple[str, float]]:
    """Attention by word; that of the special tokens at both ends is left out."""
    tokenizer = processor.tokenizer
    weights = attention.view(-1, len(ids)).sum(dim=0).tolist()
    special = tokenizer.get_special_tokens_mask(ids.tolist(), already_has_special_tokens=True)
    if tokenizer.is_fast:
        encoded = tokenizer(text, truncation=True, max_length=len(ids), return_offsets_mapping=True)
        numbers = encoded.word_ids()[: len(ids)]
        spans = encoded["offset_mapping"][: len(ids)]
        names: dict[int, str] = {}
        for number, (start, end) in zip(numbers, spans, strict=True):
            if number is not None:
                names[number] = names.get(number, "") + text[start:end]
    else:
        numbers = list(range(len(ids)))
        names = dict(enumerate(tokenizer.convert_ids_to_tokens(ids.tolist())))
    totals: dict[int, float] = {}
    for number, weight, masked in zip(numbers, weights, special, strict=True):
        if number is not None and not masked:
            totals[number] = totals.get(number, 0.0) + weight
    whole = sum(totals.values()) or 1.0
    return [(names[number], weight / whole) for number, weight in totals.items()]
