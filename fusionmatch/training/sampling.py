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
"""Which pairs meet in a batch: at random, each product once, or those that the model confuses."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import Sampler

from ..catalogue.duplicates import connected_rows
from ..evaluation.retrieval import FeatureLookup, embed_images, embed_texts
from .data import FusionMatchCollator, PairDataset
from .distributed import from_main_process


SAMPLERS = {
    "batch_sampler": "at random",
    "no_duplicates": "no product, nor anything that products share, twice in a batch",
    "hard_negatives": "pairs of other products that the model of this epoch confuses come together",
}
SAMPLERS_HELP = "; ".join(f"{name}: {what}" for name, what in SAMPLERS.items()) + "."
# Rows that come together by `hard_negatives`: one drawn at random and its nearest of other products.
NEIGHBOURS = 8
# Similarities at a time, for memory.
_SCORES = 2**24

Embed = Callable[[], tuple[torch.Tensor, torch.Tensor]]


def spread(order: list[int], pairs: PairDataset, batch_size: int, generator: torch.Generator) -> list[int]:
    """
    Deals rows, given in a random order, out to the batches in turn, those of a group and within it of a product one
    after the other: each batch then gets at most one of them, or as few as can be. What is left over from whole
    batches comes last. Rows may be there more than once.
    """
    count = len(order) // batch_size
    if count < 2:
        return order
    groups, products = connected_rows(pairs.names_of(row) for row in order), [pairs.product_of(row) for row in order]
    # By where they come first: groups, and products within a group of many, are in another order in each epoch.
    group_at, product_at = ({name: i for i, name in reversed(list(enumerate(names)))} for names in (groups, products))
    whole = count * batch_size
    dealt = sorted(range(whole), key=lambda i: (group_at[groups[i]], product_at[products[i]]))
    batches = [dealt[batch::count] for batch in torch.randperm(count, generator=generator).tolist()]
    return [order[i] for batch in batches for i in batch] + order[whole:]


class SpreadSampler(Sampler[int]):
    """
    Gives the rows of an epoch in an order in which each run of `batch_size` holds every product at most once, and
    nothing that several products share ([`~fusionmatch.training.data.SharedItems`]): in a large batch of a catalogue
    with many variants these would be the negatives that teach nothing. What has more rows than there are batches is
    spread evenly over all of them.

    The order is the same in all processes, and a checkpoint keeps it.

    Args:
        pairs ([`PairDataset`]):
            The rows; its epoch is the sampler's.
        batch_size (`int`):
            Rows in the batch of all processes together.
        seed (`int`, *optional*, defaults to 0):
            Another seed gives other orders.
        embed (`Callable`, *optional*):
            Gives unit vectors of the pictures and of one text of every row, (rows, d) each, as the model sees them
            now. Rows then come with their [`NEIGHBOURS`] most similar ones of other products in place of being spread;
            time grows with the square of their number.
    """

    def __init__(self, pairs: PairDataset, batch_size: int, seed: int = 0, embed: Embed | None = None) -> None:
        self.pairs = pairs
        self.batch_size = batch_size
        self.seed = seed
        self.embed = embed
        self.order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[int]:
        # An order that follows from the model's embeddings cannot be found again in the middle of an epoch.
        if self.order is None or self.order[0] != self.pairs.epoch:
            self.order = self.pairs.epoch, torch.tensor(from_main_process(self._new_order))
        return iter(self.order[1].tolist())

    def _new_order(self) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.pairs.epoch)
        order = torch.randperm(len(self.pairs), generator=generator).tolist()
        if self.embed is not None:
            return self._beside_neighbours(order, *self.embed())
        return spread(order, self.pairs, self.batch_size, generator)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Epoch and order of the rows, for a checkpoint; empty before the first epoch."""
        return {} if self.order is None else {"epoch": torch.tensor(self.order[0]), "order": self.order[1]}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes up an order where it was left."""
        self.order = (int(state["epoch"]), state["order"]) if state else None

    def _beside_neighbours(self, order: list[int], images: torch.Tensor, texts: torch.Tensor) -> list[int]:
        """The order with each row followed by those whose pictures are the nearest to its text, if still free."""
        products = torch.tensor(self.pairs.products)
        found = []
        for rows in torch.arange(len(order)).split(max(1, _SCORES // len(order))):
            scores = texts[rows] @ images.t()
            scores.masked_fill_(products[rows][:, None] == products[None, :], -torch.inf)
            found.append(scores.topk(min(4 * NEIGHBOURS, scores.shape[1]), dim=1).indices)
        nearest = torch.cat(found).tolist()
        names = [self.pairs.names_of(row) for row in range(len(order))]
        free = [True] * len(order)
        result = []
        for row in order:
            if not free[row]:
                continue
            group, taken = [row], set(names[row])
            for other in nearest[row]:
                if free[other] and other != row and not names[other] & taken and len(group) <= NEIGHBOURS:
                    group.append(other)
                    taken |= names[other]
            for one in group:
                free[one] = False
            result += group
        return result


def embed_rows(
    model: nn.Module,
    processor: Any,
    dataset: datasets.Dataset,
    pairs: PairDataset,
    collator: FusionMatchCollator,
    batch_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors (n, d) of pictures and texts of [`PairDataset.to_embed`], from cached features where possible."""

    def features(cache: FeatureLookup | None, places: Sequence[int]) -> FeatureLookup | None:
        return None if cache is None else lambda items: cache([places[item] for item in items])

    rows, texts, places = pairs.to_embed()
    vision = features(collator.vision_features, [row * pairs.image_views for row in rows])
    text = features(collator.text_features, places)
    images = dataset.select(rows)["image"]
    return (
        embed_images(model, processor, images, batch_size, disable_tqdm=True, vision_features=vision),
        embed_texts(model, processor, texts, batch_size, disable_tqdm=True, text_features=text),
    )


def make_sampler(name: str, pairs: PairDataset, batch_size: int, seed: int, embed: Embed) -> Sampler | None:
    """A sampler by its name in [`SAMPLERS`]; `None` for the trainer's own."""
    if name == "batch_sampler":
        return None
    return SpreadSampler(pairs, batch_size, seed, embed if name == "hard_negatives" else None)
