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
"""Which product goes into which split: a hash of its name decides, so that it stays when the catalogue grows."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from .duplicates import connected_rows


logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "eval": "test",
}


def split_name(name: str) -> str | None:
    """Gives `train`, `validation` or `test` for a split's usual names (`val`, `valid`, `dev`, `eval`), else `None`."""
    return _ALIASES.get(name.strip().lower())


def check_split_sizes(validation_size: float, test_size: float) -> None:
    """
    Checks the shares of the validation and the test split.

    Raises:
        `ValueError`: A share is outside [0, 1), or together they leave nothing to train on.
    """
    for name, size in (("validation_size", validation_size), ("test_size", test_size)):
        if not 0 <= size < 1:
            raise ValueError(f"{name} must be a share of the products in [0, 1), got {size}. 0 leaves the split out.")
    if validation_size + test_size >= 1:
        raise ValueError(
            f"validation_size + test_size must stay below 1 so that a train split is left, "
            f"got {validation_size} + {test_size}. Lower one of them."
        )


def product_share(product: str, seed: int = 0) -> float:
    """
    Places a product on [0, 1) by a hash of the seed and its name, the same on every machine and in every run.

    Args:
        product (`str`): Name of the product.
        seed (`int`, *optional*, defaults to 0): Another seed gives another placing.
    """
    digest = hashlib.sha256(f"{seed}\0{product}".encode()).digest()
    # 53 bits are what a float holds: more would round up to 1.0 now and then.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def tie_products(products: Sequence[str], pictures: Sequence[str]) -> dict[str, str]:
    """
    Ties products that share a picture, since a picture must not stand in two splits.

    Args:
        products (`Sequence[str]`): Product of each row.
        pictures (`Sequence[str]`): What names each row's picture, the same for its copies; same length.

    Returns:
        `dict[str, str]`: For every product the smallest name among those it is tied to, itself when there is none.
    """
    groups = connected_rows(
        (("product", product), ("picture", picture)) for product, picture in zip(products, pictures, strict=True)
    )
    first: dict[int, str] = {}
    for product, group in zip(products, groups, strict=True):
        first[group] = min(product, first.get(group, product))
    tied = {product: first[group] for product, group in zip(products, groups, strict=True)}

    name, count = Counter(tied.values()).most_common(1)[0] if tied else ("", 0)
    if count > max(10, len(tied) // 10):
        logger.warning(
            f"{count:,} of {len(tied):,} products are tied to '{name}' by the same picture and go into one split. "
            "A stand-in picture such as 'no photo available' does this: remove its rows."
        )
    return tied


def split_products(
    products: Sequence[str],
    pictures: Sequence[str],
    validation_size: float = 0.1,
    test_size: float = 0.2,
    seed: int = 0,
) -> list[str]:
    """
    Assigns a split to every row, product by product.

    A product's split follows from a hash of its name alone and so stays the same when rows are added, unless a new row
    ties it to another product by the same picture.

    Args:
        products (`Sequence[str]`): Product of each row.
        pictures (`Sequence[str]`): What names each row's picture, the same for its copies; same length.
            Products sharing one fall together.
        validation_size (`float`, *optional*, defaults to 0.1): Share of the products in [0, 1); 0 for no such split.
        test_size (`float`, *optional*, defaults to 0.2): Share of the products in [0, 1); 0 for no such split.
        seed (`int`, *optional*, defaults to 0): Another seed gives another division.

    Returns:
        `list[str]`: `train`, `validation` or `test` for each row.

    Raises:
        `ValueError`: The sizes are out of range.
    """
    check_split_sizes(validation_size, test_size)

    def choose(share: float) -> str:
        if share < test_size:
            return "test"
        return "validation" if share < test_size + validation_size else "train"

    split_of = {
        product: choose(product_share(leader, seed)) for product, leader in tie_products(products, pictures).items()
    }
    return [split_of[product] for product in products]


def check_split_products(splits: Sequence[str], products: Sequence[str], wanted: Iterable[str], remedy: str) -> None:
    """
    Checks that every split holds at least two products: with one there is nothing to tell it from.

    Raises:
        `ValueError`: A wanted split holds fewer; the message ends in `remedy`.
    """
    held: dict[str, set[str]] = defaultdict(set)
    for split, product in zip(splits, products, strict=True):
        held[split].add(product)
    for split in wanted:
        if len(held[split]) < 2:
            raise ValueError(
                f"The {split} split holds {len(held[split])} product(s) of {len(set(products))}; matching needs at "
                f"least 2 to choose between. {remedy}"
            )


def warn_of_leaks(splits: Sequence[str], products: Sequence[str], pictures: Sequence[str]) -> None:
    """Warns when the user's own splits share products or pictures: figures on them would flatter."""
    for noun, names in (("product", products), ("picture", pictures)):
        home: dict[str, str] = {}
        shared = {name for name, split in zip(names, splits, strict=True) if home.setdefault(name, split) != split}
        if shared:
            logger.warning(
                f"{len(shared):,} {noun}(s) stand in more than one split, such as '{min(shared)}'. The splits are "
                "kept as they were given; results on them will look better than on products the model has not seen."
            )
