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
"""From a catalogue split to training batches."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from transformers import PreTrainedConfig

from ..catalogue.duplicates import text_key
from ..evaluation.inputs import stack_images, text_inputs
from ..evaluation.retrieval import FeatureLookup


def product_id(product: str) -> int:
    """A product's name, or another text, as a 63-bit integer, the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(product.encode(), digest_size=8).digest(), "big") >> 1


def unpaired_product(row: int) -> int:
    """The product that a row without texts is trained as: nobody has said yet which one its picture shows."""
    return product_id(f"unpaired {row}")


def picture_view(image: Image.Image, row: int, view: int) -> Image.Image:
    """
    One of the views of a picture that training takes turns in: 0 is the picture itself, 1 its mirror image, further
    ones are crops of 40 to 90 % of its area, every second one mirrored. The same row and view always give the same.
    """
    if view == 0:
        return image
    if view == 1:
        return ImageOps.mirror(image)
    draw = random.Random((row << 16) + view)
    share, aspect = draw.uniform(0.4, 0.9) ** 0.5, draw.uniform(0.85, 1.18) ** 0.5
    width, height = (
        max(1, round(min(1, s) * n)) for s, n in zip((share * aspect, share / aspect), image.size, strict=True)
    )
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    image = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(image) if view % 2 else image


class PairDataset(Dataset):
    r"""
    Pairs for training: one picture with one or more of its texts. Which texts, and which view of the picture, rotates
    with the epoch, so that all of them are seen equally often and a resumed run sees what the uninterrupted one would
    have.

    Args:
        dataset (`datasets.Dataset`):
            Rows with `image`, `texts` and `product` (the schema of [`fusionmatch.catalogue`]), and maybe the
            `picture_group` that tells copies of a picture, and the `concepts` that are known of them
            ([`~fusionmatch.catalogue.ConceptBank.label`]).
        texts_per_image (`int`, *optional*, defaults to 1):
            Texts taken from each row in an epoch; rows with fewer give all that they have.
        image_views (`int`, *optional*, defaults to 1):
            Views of each picture ([`picture_view`]), one in an epoch.
        prepare (`Callable`, *optional*):
            What makes of a picture the `image` of an item ([`~fusionmatch.evaluation.inputs.prepare_image`]), one by
            one, so that the pictures of a large batch never lie in memory in their own size. Without, items hold only
            the index of the view (whose features are cached).

    Raises:
        `ValueError`: a column is missing, or there are fewer than two products.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        texts_per_image: int = 1,
        image_views: int = 1,
        prepare: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        check_columns(dataset)
        self.products = [product_id(product) for product in dataset["product"]]
        if len(set(self.products)) < 2:
            raise ValueError(
                f"Training needs at least two products to tell apart, got {len(set(self.products))}. Check the "
                "`product` column (`--group_column`) and the sizes of the splits."
            )
        self.dataset, self.prepare = dataset if prepare is not None else None, prepare
        self.texts = [list(texts) for texts in dataset["texts"]]
        names = dataset["picture_group"] if "picture_group" in dataset.column_names else [None] * len(self.texts)
        self.picture_names = [product_id(f"row {i}" if name is None else name) for i, name in enumerate(names)]
        self.text_names = [[product_id(text_key(text)) for text in texts] for texts in self.texts]
        # By what is trained on: copies of a picture may be of one product that nobody has said of all of them.
        trained = [self.products[i] if texts else unpaired_product(i) for i, texts in enumerate(self.texts)]
        self.shared = SharedItems(trained, self.picture_names, self.text_names)
        self.concepts = list(dataset["concepts"]) if "concepts" in dataset.column_names else None
        self.first_text = torch.tensor([0] + [len(texts) for texts in self.texts]).cumsum(0).tolist()
        self.texts_per_image = texts_per_image
        self.image_views = image_views
        # In shared memory, so that workers that live on see it as well.
        self._epoch = torch.zeros(1, dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Chooses the texts and views of this epoch; called by [`EpochCallback`]."""
        self._epoch[0] = epoch

    @property
    def epoch(self) -> int:
        """The epoch that was chosen."""
        return int(self._epoch)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def all_texts(self) -> list[str]:
        """The texts of all rows, one after the other: what `text_indices` of an item count."""
        return [text for texts in self.texts for text in texts]

    def product_of(self, row: int) -> int:
        """The product that a row is trained as."""
        return self.products[row]

    def names_of(self, row: int) -> set[int]:
        """The product of a row and what it shares with others: rows that have one in common teach least together."""
        names = {self.product_of(row)} | ({self.picture_names[row]} & self.shared.pictures.keys())
        return names | (set(self.text_names[row]) & self.shared.texts.keys())

    def to_embed(self) -> tuple[Sequence[int], Sequence[str], Sequence[int]]:
        """Rows whose pictures a sampler wants to look at, and texts with their indices: the first one of each row."""
        return range(len(self)), [texts[0] for texts in self.texts], self.first_text[:-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        texts = self.texts[index]
        # Rows start at different texts, so that one batch does not hold the first captions only.
        start = self.epoch * self.texts_per_image + index
        chosen = [(start + i) % len(texts) for i in range(min(self.texts_per_image, len(texts)))]
        item = self._picture(index) | {
            "texts": [texts[i] for i in chosen],
            "text_indices": [self.first_text[index] + i for i in chosen],
            "product": self.products[index],
        }
        if self.shared:
            item["text_names"] = [self.text_names[index][i] for i in chosen]
        if self.concepts is not None:
            item["concepts"] = self.concepts[index]
        return item

    def _picture(self, index: int) -> dict[str, Any]:
        view = (self.epoch + index) % self.image_views
        item: dict[str, Any] = {"view_index": index * self.image_views + view}
        if self.shared:
            item["picture_name"] = self.picture_names[index]
        if self.prepare is not None:
            item["image"] = self.prepare(picture_view(self.dataset[index]["image"], index, view))
        return item


def check_columns(dataset: datasets.Dataset) -> None:
    """Raises a worded `ValueError` where a dataset has not the schema of [`fusionmatch.catalogue`]."""
    missing = {"image", "texts", "product"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"The dataset has no column {sorted(missing)}; it has {dataset.column_names}. Load it with "
            "`fusionmatch.load_catalogue`, which maps a catalogue's columns to `image`, `texts` and `product`."
        )


class SharedItems:
    """
    Pictures and texts that several products share: to tell those products apart by them would be to guess. So a text
    is no negative of a picture whose copy its own product has, nor of a picture of a product that has the same text
    ([`~fusionmatch.catalogue.duplicates`] says what a copy and the same text are). Other pictures and texts of those
    products are negatives of each other as always.

    Args:
        products (`Sequence[int]`):
            Product of each row.
        pictures (`Sequence[int]`):
            What names the picture of each row, the same for its copies.
        texts (`Sequence[Sequence[int]]`):
            What names the texts of each row.
    """

    def __init__(self, products: Sequence[int], pictures: Sequence[int], texts: Sequence[Sequence[int]]) -> None:
        have: list[dict[int, set[int]]] = [{}, {}]
        for product, picture, keys in zip(products, pictures, texts, strict=True):
            have[0].setdefault(picture, set()).add(product)
            for key in keys:
                have[1].setdefault(key, set()).add(product)
        self.pictures, self.texts = (
            {name: torch.tensor(sorted(of)) for name, of in found.items() if len(of) > 1} for found in have
        )

    def __bool__(self) -> bool:
        return bool(self.pictures or self.texts)

    def ignored(
        self,
        text_products: torch.Tensor,
        image_products: torch.Tensor,
        text_names: torch.Tensor,
        image_names: torch.Tensor,
    ) -> torch.Tensor:
        """Pairs of a batch that are no negatives, bool of shape (texts, images); positives may be among them."""
        table = torch.zeros(len(text_products), len(image_products), dtype=torch.bool, device=text_products.device)
        for name in set(text_names.tolist()) & self.texts.keys():
            same = torch.isin(image_products, self.texts[name].to(table.device))
            table |= (text_names == name)[:, None] & same[None, :]
        for name in set(image_names.tolist()) & self.pictures.keys():
            same = torch.isin(text_products, self.pictures[name].to(table.device))
            table |= same[:, None] & (image_names == name)[None, :]
        return table


@dataclass
class FusionMatchCollator:
    r"""
    Makes batches for [`FusionMatchModel`]: pixels and token ids, or cached tower features in place of either.

    Args:
        processor ([`FusionMatchProcessor`]):
            Prepares pictures and texts.
        text_config (`PreTrainedConfig`):
            Configuration of the text tower; says how texts are padded and how long they may be.
        vision_features, text_features (`Callable`, *optional*):
            Cached features by index ([`TowerFeatureCache`]).
        concept_words (`Sequence[str]`, *optional*):
            The model's concepts; labels of other words are left out.
    """

    processor: Any
    text_config: PreTrainedConfig
    vision_features: FeatureLookup | None = None
    text_features: FeatureLookup | None = None
    concept_words: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._concepts = {word: i for i, word in enumerate(self.concept_words)}

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """
        Items of [`PairDataset`] -> keyword arguments of the model and the products of pictures and texts. The pictures
        are taken out of the items.

        Raises:
            `ValueError`: the items hold no pictures, and there are no cached features in their place.
        """
        batch: dict[str, Any] = {
            "image_products": torch.tensor([item["product"] for item in items]),
            "text_products": torch.tensor([item["product"] for item in items for _ in item["texts"]]),
        }
        if "picture_name" in items[0]:
            batch["image_names"] = torch.tensor([item["picture_name"] for item in items])
            batch["text_names"] = torch.tensor([name for item in items for name in item["text_names"]])
        if self._concepts and "concepts" in items[0]:
            labels = torch.zeros(len(items), len(self._concepts), dtype=torch.bool)
            for i, item in enumerate(items):
                labels[i, [self._concepts[word] for word in item["concepts"] or () if word in self._concepts]] = True
            batch["image_labels"] = labels
            batch["text_labels"] = labels.repeat_interleave(torch.tensor([len(item["texts"]) for item in items]), 0)
        if self.vision_features is not None:
            batch["vision_features"] = self.vision_features([item["view_index"] for item in items])
        elif "image" not in items[0]:
            raise ValueError(
                "The pairs hold no pictures. Give `PairDataset` a `prepare`, or the collator `vision_features`."
            )
        else:
            batch["pixel_values"] = stack_images(self.processor, [item.pop("image") for item in items])
        if self.text_features is not None:
            batch["text_features"] = self.text_features([i for item in items for i in item["text_indices"]])
        else:
            texts = [text for item in items for text in item["texts"]]
            batch |= text_inputs(self.processor, texts, self.text_config)
        return batch
