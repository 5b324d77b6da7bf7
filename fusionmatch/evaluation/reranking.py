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
"""Puts the first candidates of each query in order by a ranking stage."""

from collections.abc import Hashable, Sequence

import torch
from torch import nn
from tqdm.auto import tqdm

from ..modeling_fusionmatch_ranking import FusionMatchForImageTextRetrieval
from ..outputs_fusionmatch import FusionMatchTowerOutput


# Embeddings, unit length, (items, projection_dim); and the tokens of each item, (tokens, hidden_size).
Side = tuple[torch.Tensor, Sequence[torch.Tensor]]


def ranking_model(model: nn.Module) -> FusionMatchForImageTextRetrieval | None:
    """The model with a ranking stage inside a `PeftModel`, or the model itself; `None` where it has none."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model if isinstance(model, FusionMatchForImageTextRetrieval) else None


class TokenCollector:
    """Keeps the tokens of each item for a ranking stage, (tokens, hidden_size) in half precision."""

    def __init__(self) -> None:
        self._found: dict[int, torch.Tensor] = {}

    @property
    def tokens(self) -> list[torch.Tensor]:
        """In the order of the rows."""
        return [self._found[row] for row in range(len(self._found))]

    def __call__(self, output: FusionMatchTowerOutput, rows: Sequence[int]) -> None:
        masks = [slice(None)] * len(rows) if output.fusion_mask is None else output.fusion_mask.bool()
        for row, tokens, mask in zip(rows, output.fusion_tokens, masks, strict=True):
            self._found[row] = tokens[mask].half().cpu()


@torch.no_grad()
def match_logits(model: FusionMatchForImageTextRetrieval, texts: Side, images: Side) -> torch.Tensor:
    """
    Log-odds that the i-th text and the i-th picture belong together.

    Args:
        model ([`FusionMatchForImageTextRetrieval`]):
            The model, in evaluation mode.
        texts, images (`tuple`):
            Embeddings, unit length, of shape (pairs, projection_dim), and the tokens of each, (tokens, hidden_size).

    Returns:
        `torch.FloatTensor` of shape `(pairs,)`, on the CPU.
    """
    dtype, device = model.ranker.fc2.weight.dtype, model.ranker.fc2.weight.device
    text_tokens = nn.utils.rnn.pad_sequence([tokens.to(device, dtype) for tokens in texts[1]], batch_first=True)
    lengths = torch.tensor([len(tokens) for tokens in texts[1]], device=device)
    mask = (torch.arange(text_tokens.shape[1], device=device)[None, :] < lengths[:, None]).long()
    image_tokens = torch.stack([tokens.to(device, dtype) for tokens in images[1]])
    logits = model.fusionmatch.similarity.pairs(texts[0].to(device, dtype), images[0].to(device, dtype))
    return model.ranker(text_tokens, mask, image_tokens, logits).float().cpu()


def rerank(
    model: FusionMatchForImageTextRetrieval,
    texts: Side,
    images: Side,
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
        texts, images (`tuple`):
            Embeddings and tokens, see [`match_logits`].
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
    queries, gallery = (images, texts) if direction == "i2t" else (texts, images)
    top_k = min(top_k, len(gallery[0]))
    candidates, scores = [], []
    name = "pictures" if direction == "i2t" else "texts"
    with tqdm(total=len(queries[0]), desc=f"Ranking for {name}", unit="query", disable=disable_tqdm) as bar:
        for first in range(0, len(queries[0]), batch_size):
            rows = range(first, min(first + batch_size, len(queries[0])))
            best = (queries[0][rows.start : rows.stop] @ gallery[0].t()).topk(top_k, dim=1).indices
            asking, asked = [row for row in rows for _ in range(top_k)], best.flatten().tolist()
            pairs = [
                (embeds[index], [tokens[i] for i in index])
                for (embeds, tokens), index in ((queries, asking), (gallery, asked))
            ]
            text, image = reversed(pairs) if direction == "i2t" else pairs
            scores.append(match_logits(model, text, image).view(len(rows), top_k))
            candidates.append(best)
            bar.update(len(rows))
    return torch.cat(candidates), torch.cat(scores)


def reranked_ranks(
    ranks: torch.Tensor,
    candidates: torch.Tensor,
    scores: torch.Tensor,
    query_products: Sequence[Hashable],
    gallery_products: Sequence[Hashable],
) -> torch.Tensor:
    """
    Rank of each query's first relevant item, where the first candidates are in the order of the ranking stage and all
    others stay behind them as they were. Ties count against the model.

    Args:
        ranks (`torch.LongTensor` of shape `(queries,)`):
            Ranks by the embeddings, from 1; 0 where the gallery holds nothing relevant.
        candidates, scores (`torch.Tensor` of shape `(queries, candidates)`):
            What [`rerank`] gives.
        query_products, gallery_products (sequence):
            Products of the queries and of the gallery.

    Returns:
        `torch.LongTensor` of shape `(queries,)`: ranks from 1; 0 where the gallery holds nothing relevant.
    """
    codes = {product: i for i, product in enumerate(dict.fromkeys([*query_products, *gallery_products]))}
    own = torch.tensor([codes[product] for product in query_products])
    relevant = torch.tensor([codes[product] for product in gallery_products])[candidates] == own[:, None]
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    ahead = ((scores >= best) & ~relevant).sum(dim=1)
    return torch.where(relevant.any(dim=1), ahead + 1, ranks.clamp(min=candidates.shape[1] + 1) * (ranks > 0))
