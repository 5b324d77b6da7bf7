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
"""Pictures and texts of a catalogue that may not belong together, also without a model that was trained on pairs."""

from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import datasets
import torch
from peft import PeftModel
from torch import nn
from tqdm.auto import tqdm

from .calibration import PairCalibration
from .inputs import image_inputs, text_inputs
from .retrieval import CatalogueEmbeddings


MISMATCH = "picture and text may not belong together"
# A picture that half of the catalogue's other texts fit better than its own.
SUSPICIOUS = 0.5
FEWEST_PRODUCTS = 20
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
_ROWS = 1024
# Products shown beside a listing whose texts fit its picture best, and rows looked through to find as many.
_SHOWN, _LOOKED_AT = 3, 24


@torch.no_grad()
def tower_vectors(
    model: nn.Module, processor: Any, dataset: datasets.Dataset, batch_size: int = 32, disable_tqdm: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Pooled features of both towers for each row, before any head: what encoders know that never saw the catalogue, or,
    where they were tuned whole, what they made of it.

    Args:
        model ([`FusionMatchModel`] or `PeftModel`):
            The model; heads, fusion and an adapter, which may have learnt wrong pairs by heart, are not used. Towers
            that were tuned without one, or into which it was merged, are taken as they are.
        processor ([`FusionMatchProcessor`]):
            Its processor.
        dataset (`datasets.Dataset`):
            Rows with `image` and `texts`; several texts of a row are averaged.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shape `(rows, size)`: of pictures and of texts, not normalised.
    """
    core = getattr(model, "fusionmatch", model)
    texts = list(dict.fromkeys(text for own in dataset["texts"] for text in own))
    place = {text: i for i, text in enumerate(texts)}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    images, vectors = [], None
    total = len(dataset) + len(texts)
    untouched = model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
    with untouched, tqdm(total=total, desc="Looking at pairs", unit="row", disable=disable_tqdm) as bar:
        for first in range(0, len(dataset), batch_size):
            rows = dataset[first : first + batch_size]["image"]
            pixels = image_inputs(processor, rows).to(model.device)
            images.append(core.encode_tower(pixel_values=pixels).pooled.float().cpu())
            bar.update(len(rows))
        for first in range(0, len(texts), 4 * batch_size):
            chosen = order[first : first + 4 * batch_size]
            inputs = text_inputs(processor, [texts[i] for i in chosen], model.config.text_config)
            pooled = core.encode_tower(**{name: part.to(model.device) for name, part in inputs.items()}).pooled
            vectors = pooled.new_empty(len(texts), pooled.shape[1]).float().cpu() if vectors is None else vectors
            vectors[chosen] = nn.functional.normalize(pooled.float(), dim=1).cpu()
            bar.update(len(chosen))
    own = [vectors[[place[text] for text in row]].mean(dim=0) for row in dataset["texts"]]
    return torch.cat(images), torch.stack(own)


def own_texts(found: CatalogueEmbeddings, dataset: datasets.Dataset) -> list[list[int]]:
    """Where the texts of each row stand among those of an embedded catalogue."""
    place = {pair: i for i, pair in enumerate(zip(found.texts, found.text_products, strict=True))}
    return [
        [place[text, product] for text in own]
        for own, product in zip(dataset["texts"], dataset["product"], strict=True)
    ]


def pair_probabilities(
    found: CatalogueEmbeddings, texts: Sequence[Sequence[int]], calibration: PairCalibration
) -> list[float]:
    """
    How probable it is that a picture and its texts belong together, the mean over its texts. Too high for what the
    model was trained on.

    Args:
        found ([`~fusionmatch.evaluation.retrieval.CatalogueEmbeddings`]):
            The embedded catalogue.
        texts (`Sequence[Sequence[int]]`):
            Texts of each picture ([`own_texts`]).
        calibration ([`~fusionmatch.evaluation.calibration.PairCalibration`]):
            The model's.

    Returns:
        `list[float]`: for each picture, in (0, 1).
    """
    return [
        float(calibration.probability((found.text_embeds[list(own)] @ image).numpy()).mean())
        for image, own in zip(found.image_embeds, texts, strict=True)
    ]


def suspicions(
    images: torch.Tensor, texts: torch.Tensor, products: Sequence[Hashable], folds: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    How much better the texts of other products fit a picture than its own text does.

    A linear map from picture to text vectors (ridge regression, closed form) is fitted on some of the products and
    looks at the others, so that no pair speaks for itself. In a pair that belongs together few other texts are nearer
    than its own; in one that does not, any share of them is. So at most about twice as many pairs do not belong
    together as have a suspicion above 0.5: fewer, where products resemble each other.

    Args:
        images (`torch.Tensor` of shape `(n, d)`), texts (`torch.Tensor` of shape `(n, m)`):
            Vectors of the pictures and of their texts ([`tower_vectors`]).
        products (sequence of length `n`):
            The product of each.
        folds (`int`, *optional*, defaults to 5):
            Parts that the products are divided into.
        seed (`int`, *optional*, defaults to 0):
            Of the division.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: of shape `(n,)` the share of the other products' texts that fit better, in
        [0, 1]; of shape `(n, min(24, n))` the rows whose texts fit best, the best first. Rows of the own product stand
        at the end of those.

    Raises:
        `ValueError`: fewer than 20 products.
    """
    codes = {product: i for i, product in enumerate(dict.fromkeys(products))}
    if len(codes) < FEWEST_PRODUCTS:
        raise ValueError(
            f"To tell what belongs together takes at least {FEWEST_PRODUCTS} products, there are {len(codes)}."
        )
    code = torch.tensor([codes[product] for product in products])
    fold = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))[code] % folds
    images, texts = (nn.functional.normalize(part.double(), dim=1) for part in (images, texts))
    found = torch.empty(len(_RIDGES), len(code))
    nearest = torch.empty(len(_RIDGES), len(code), min(_LOOKED_AT, len(code)), dtype=torch.long)
    for held_out in range(folds):
        rows, rest = (fold == held_out).nonzero().flatten(), fold != held_out
        centres = images[rest].mean(dim=0), texts[rest].mean(dim=0)
        x, y = images[rest] - centres[0], texts[rest] - centres[1]
        values, vectors = torch.linalg.eigh(x.t() @ x)
        right = vectors.t() @ (x.t() @ y)
        gallery = nn.functional.normalize(texts - centres[1], dim=1)
        for i, ridge in enumerate(_RIDGES):
            map_to_texts = vectors @ (right / (values.clamp(min=0) + ridge)[:, None])
            for part in rows.split(_ROWS):
                scores = nn.functional.normalize((images[part] - centres[0]) @ map_to_texts, dim=1) @ gallery.t()
                others = code[part, None] != code
                # The same text, at another product as well, fits exactly as well.
                better = (scores > scores.gather(1, part[:, None]) + 1e-9) & others
                found[i, part] = better.sum(dim=1) / others.sum(dim=1)
                nearest[i, part] = scores.masked_fill(~others, -2).topk(nearest.shape[2], dim=1).indices
    # The ridge under which pairs fit best as a whole.
    best = found.mean(dim=1).argmin()
    return found[best], nearest[best]


class Listing(NamedTuple):
    """
    A row whose picture and text may not belong together.

    Args:
        row (`int`): The row.
        share (`float`): Share of the other products' texts that fit its picture better, in [0, 1].
        fits (`list[int]`): Rows of the products whose texts fit best, at most three.
        swapped_with (`int`, *optional*): The one of them whose picture this row's text fits in turn: the two texts may
            have changed places.
        probability (`float`, *optional*): That picture and text belong together, as a calibrated model says.
    """

    row: int
    share: float
    fits: list[int]
    swapped_with: int | None
    probability: float | None = None

    @property
    def suspicion(self) -> float:
        """In [0, 1]: the share alone, or the mean of it and of how probable it is that they do not belong together."""
        return self.share if self.probability is None else (self.share + 1 - self.probability) / 2


def suspicious_listings(
    images: torch.Tensor,
    texts: torch.Tensor,
    products: Sequence[Hashable],
    threshold: float = SUSPICIOUS,
    probabilities: Sequence[float] | None = None,
) -> list[Listing]:
    """
    The rows above a suspicion, the worst first. The other arguments are those of [`suspicions`].

    Args:
        threshold (`float`, *optional*, defaults to 0.5):
            A lower one finds more of what does not belong together, and more of what does.
        probabilities (`Sequence[float]`, *optional*):
            Of each row to belong together ([`pair_probabilities`]), for [`Listing.suspicion`].
    """
    share, nearest = suspicions(images, texts, products)
    sure = [None] * len(products) if probabilities is None else probabilities

    def fits(row: int) -> list[int]:
        best: dict[Hashable, int] = {}
        for other in nearest[row].tolist():
            if products[other] != products[row]:
                best.setdefault(products[other], other)
        return list(best.values())[:_SHOWN]

    found = [Listing(row, own, [], None, sure[row]) for row, own in enumerate(share.tolist())]
    above = {listing.row for listing in found if listing.suspicion > threshold}
    listings = []
    for listing in sorted((found[row] for row in sorted(above)), key=lambda each: -each.suspicion):
        candidates = fits(listing.row)
        back = (other for other in candidates if products[listing.row] in {products[each] for each in fits(other)})
        swapped = next((other for other in back if other in above), None)
        listings.append(listing._replace(fits=candidates, swapped_with=swapped))
    return listings
