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
"""Puts the first candidates of each query in order by a ranking stage, and measures what that gives."""

from typing import Any

import datasets
import torch
from torch import nn
from tqdm.auto import tqdm

from ..modeling_fusionmatch_ranking import FusionMatchForImageTextRetrieval
from .ranking import rank_of_first_relevant, summarise_ranks
from .retrieval import CatalogueEmbeddings, embed_catalogue


def ranking_model(model: nn.Module) -> FusionMatchForImageTextRetrieval | None:
    """The model with a ranking stage inside a `PeftModel`, or the model itself; `None` where it has none."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model if isinstance(model, FusionMatchForImageTextRetrieval) else None


@torch.no_grad()
def match_logits(
    model: FusionMatchForImageTextRetrieval,
    text_embeds: torch.Tensor,
    text_tokens: list[torch.Tensor],
    image_embeds: torch.Tensor,
    image_tokens: list[torch.Tensor],
) -> torch.Tensor:
    """
    Log-odds that the i-th text and the i-th picture belong together.

    Args:
        model ([`FusionMatchForImageTextRetrieval`]):
            The model, in evaluation mode.
        text_embeds, image_embeds (`torch.Tensor` of shape `(pairs, projection_dim)`):
            Embeddings, unit length.
        text_tokens, image_tokens (`list[torch.Tensor]`):
            Tokens of each, (tokens, hidden_size).

    Returns:
        `torch.FloatTensor` of shape `(pairs,)`, on the CPU.
    """
    dtype, device = model.ranker.fc2.weight.dtype, model.ranker.fc2.weight.device
    texts = nn.utils.rnn.pad_sequence([tokens.to(device, dtype) for tokens in text_tokens], batch_first=True)
    lengths = torch.tensor([len(tokens) for tokens in text_tokens], device=device)
    mask = (torch.arange(texts.shape[1], device=device)[None, :] < lengths[:, None]).long()
    images = torch.stack([tokens.to(device, dtype) for tokens in image_tokens])
    logits = model.fusionmatch.similarity(text_embeds.to(device, dtype), image_embeds.to(device, dtype))
    return model.ranker(texts, mask, images, logits.diagonal()).float().cpu()


def rerank(
    model: FusionMatchForImageTextRetrieval,
    embeddings: CatalogueEmbeddings,
    direction: str,
    top_k: int = 20,
    batch_size: int = 32,
    disable_tqdm: bool = False,
) -> tuple[torch.LongTensor, torch.FloatTensor]:
    """
    Candidates of each query by the embeddings, and what the ranking stage says of them.

    Args:
        model ([`FusionMatchForImageTextRetrieval`]):
            The model, in evaluation mode.
        embeddings ([`CatalogueEmbeddings`]):
            Embeddings with tokens.
        direction (`str`):
            `i2t` (pictures ask for texts) or `t2i`.
        top_k (`int`, *optional*, defaults to 20):
            Candidates of each query.
        batch_size (`int`, *optional*, defaults to 32):
            Queries at a time.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to leave out the progress bar.

    Returns:
        `tuple`: indices into the gallery and log-odds, both of shape (queries, candidates), in the order of the
        embeddings.
    """
    texts, images = (
        (embeddings.text_embeds, embeddings.text_tokens),
        (embeddings.image_embeds, embeddings.image_tokens),
    )
    queries, gallery = (images, texts) if direction == "i2t" else (texts, images)
    top_k = min(top_k, len(gallery[0]))
    candidates, scores = [], []
    name = "pictures" if direction == "i2t" else "texts"
    with tqdm(total=len(queries[0]), desc=f"Ranking for {name}", unit="query", disable=disable_tqdm) as bar:
        for first in range(0, len(queries[0]), batch_size):
            rows = range(first, min(first + batch_size, len(queries[0])))
            best = (queries[0][rows.start : rows.stop] @ gallery[0].t()).topk(top_k, dim=1).indices
            own = [row for row in rows for _ in range(top_k)]
            other = best.flatten().tolist()
            sides = {"query": (queries, own), "gallery": (gallery, other)}
            text, image = ("gallery", "query") if direction == "i2t" else ("query", "gallery")
            arguments = []
            for side in (text, image):
                (embeds, tokens), index = sides[side]
                arguments += [embeds[index], [tokens[i] for i in index]]
            scores.append(match_logits(model, *arguments).view(len(rows), top_k))
            candidates.append(best)
            bar.update(len(rows))
    return torch.cat(candidates), torch.cat(scores)


def reranked_ranks(
    model: FusionMatchForImageTextRetrieval, embeddings: CatalogueEmbeddings, direction: str, **kwargs: Any
) -> torch.LongTensor:
    """
    Rank of each query's first relevant item, where the first candidates are in the order of the ranking stage and all
    others stay behind them as they were. Ties count against the model.

    The arguments are those of [`rerank`].

    Returns:
        `torch.LongTensor` of shape `(queries,)`: ranks from 1; 0 where the gallery holds nothing relevant.
    """
    images, texts = (
        (embeddings.image_embeds, embeddings.image_products),
        (embeddings.text_embeds, embeddings.text_products),
    )
    (queries, own), (gallery, products) = (images, texts) if direction == "i2t" else (texts, images)
    ranks = rank_of_first_relevant(queries, gallery, own, products)
    candidates, scores = rerank(model, embeddings, direction, **kwargs)
    codes = {product: i for i, product in enumerate(dict.fromkeys([*own, *products]))}
    own_codes = torch.tensor([codes[product] for product in own])
    relevant = torch.tensor([codes[product] for product in products])[candidates] == own_codes[:, None]
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    ahead = ((scores >= best) & ~relevant).sum(dim=1)
    return torch.where(relevant.any(dim=1), ahead + 1, ranks.clamp(min=candidates.shape[1] + 1) * (ranks > 0))


def evaluate_reranking(
    model: nn.Module,
    processor: Any,
    dataset: datasets.Dataset,
    top_k: int = 20,
    batch_size: int = 64,
    disable_tqdm: bool = False,
    **kwargs: Any,
) -> tuple[dict[str, float], dict[str, float]]:
    """
    Retrieval metrics of the embeddings alone, and with the ranking stage on their first candidates.

    Args:
        model ([`FusionMatchForImageTextRetrieval`] or a `PeftModel` around it):
            The model.
        processor ([`FusionMatchProcessor`]):
            Its processor.
        dataset (`datasets.Dataset`):
            Rows with `image`, `texts` and `product`.
        top_k (`int`, *optional*, defaults to 20):
            Candidates of each query.
        kwargs:
            Passed to [`~fusionmatch.evaluation.retrieval.embed_catalogue`].

    Returns:
        `tuple`: two dictionaries as of [`~fusionmatch.evaluation.ranking.retrieval_metrics`].

    Raises:
        `ValueError`: the model has no ranking stage, or `top_k` is below 1.
    """
    ranker = ranking_model(model)
    if ranker is None:
        raise ValueError("The model has no ranking stage; `fusionmatch train --ranking_stage True` trains one.")
    if top_k < 1:
        raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
    was_training = model.training
    model.eval()
    found = embed_catalogue(model, processor, dataset, batch_size, disable_tqdm, keep_tokens=True, **kwargs)
    products = (found.image_products, found.text_products)
    alone = [
        rank_of_first_relevant(found.image_embeds, found.text_embeds, *products),
        rank_of_first_relevant(found.text_embeds, found.image_embeds, *reversed(products)),
    ]
    ranked = [
        reranked_ranks(ranker, found, direction, top_k=top_k, disable_tqdm=disable_tqdm)
        for direction in ("i2t", "t2i")
    ]
    model.train(was_training)
    return summarise_ranks(*alone, *products), summarise_ranks(*ranked, *products)
