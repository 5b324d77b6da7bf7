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
"""A small shop to try everything on: drawn products, English and Japanese texts, and a few faults to be found."""

import csv
import itertools
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .sample_shop_drawing import COLORS, Look, draw_product, second_color_is_dark


logger = logging.getLogger(__name__)

PATTERNS = ("plain", "striped", "dotted", "checked", "zigzag", "floral")
FAULT_KINDS = (
    "truncated_image",
    "empty_image",
    "missing_image",
    "not_an_image",
    "no_text",
    "blank_text",
    "long_text",
    "duplicate_image",
)
# Only on request: to a person the shop looks sound.
RARE_FAULT_KINDS = ("reencoded_image", "swapped_text")
_TEXT_FIELDS = ("title", "description", "title_ja", "description_ja")
_COLUMNS = (
    *("sku", "product_id", "title", "description", "title_ja", "description_ja"),
    *("category", "color", "pattern", "material", "price", "image", "additional_images"),
)
_FEWEST_WITH_FAULTS = 2 * len(FAULT_KINDS)

_COLOR_JA = {
    "red": "レッド",
    "orange": "オレンジ",
    "yellow": "イエロー",
    "green": "グリーン",
    "teal": "ティール",
    "blue": "ブルー",
    "purple": "パープル",
    "pink": "ピンク",
    "brown": "ブラウン",
    "black": "ブラック",
    "white": "ホワイト",
    "grey": "グレー",
}
_PATTERN_JA = {
    "plain": "無地",
    "striped": "ストライプ柄",
    "dotted": "ドット柄",
    "checked": "チェック柄",
    "zigzag": "ジグザグ柄",
    "floral": "花柄",
}
_MATERIAL_JA = {
    "cotton": "コットン",
    "linen": "リネン",
    "wool": "ウール",
    "denim": "デニム",
    "velvet": "ベルベット",
    "leather": "レザー",
    "suede": "スエード",
    "canvas": "キャンバス",
    "nylon": "ナイロン",
    "straw": "麦わら",
    "ceramic": "陶器",
    "steel": "スチール",
    "wood": "天然木",
}
_MOTIF = {"striped": "stripes", "dotted": "dots", "checked": "checks", "zigzag": "zigzags", "floral": "flowers"}


@dataclass(frozen=True)
class _Kind:
    """A sort of product: its Japanese name, shelf, code, prices, materials, and what it is for in both languages."""

    ja: str
    category: str
    code: str
    prices: tuple[int, int]
    materials: tuple[str, ...]
    uses: tuple[tuple[str, str], ...]


_KINDS: dict[str, _Kind] = {
    "T-shirt": _Kind(
        *("Tシャツ", "clothing", "TSH", (15, 39), ("cotton", "linen")),
        (("warm summer days", "暑い夏の日"), ("everyday wear", "毎日の着こなし"), ("light sports", "軽い運動")),
    ),
    "hoodie": _Kind(
        *("パーカー", "clothing", "HOD", (39, 89), ("cotton", "wool")),
        (("cool evenings", "肌寒い夜"), ("weekends at home", "おうちで過ごす週末"), ("camping trips", "キャンプ")),
    ),
    "trousers": _Kind(
        *("パンツ", "clothing", "TRO", (35, 99), ("denim", "linen", "cotton")),
        (("the office", "オフィス"), ("long walks", "長めの散歩"), ("everyday wear", "普段使い")),
    ),
    "dress": _Kind(
        *("ワンピース", "clothing", "DRE", (45, 129), ("cotton", "linen", "velvet")),
        (
            ("garden parties", "ガーデンパーティー"),
            ("summer holidays", "夏の休暇"),
            ("dinner with friends", "友人との食事"),
        ),
    ),
    "sneaker": _Kind(
        *("スニーカー", "shoes", "SNK", (49, 139), ("canvas", "leather", "suede")),
        (("city walks", "街歩き"), ("school days", "通学"), ("long days on your feet", "立ち仕事の日")),
    ),
    "boot": _Kind(
        *("ブーツ", "shoes", "BOO", (89, 219), ("leather", "suede")),
        (("rainy autumn days", "秋の雨の日"), ("country walks", "郊外の散策"), ("cold winters", "寒い冬")),
    ),
    "cap": _Kind(
        *("キャップ", "accessories", "CAP", (15, 45), ("cotton", "wool", "denim", "canvas")),
        (("sunny days outdoors", "日差しの強い日の外出"), ("cycling", "サイクリング"), ("fishing trips", "釣り")),
    ),
    "tote bag": _Kind(
        *("トートバッグ", "bags", "TOT", (19, 119), ("canvas", "leather", "denim", "straw")),
        (
            ("the weekly shopping", "まとめ買い"),
            ("a day at the beach", "海辺での一日"),
            ("books and a laptop", "本やパソコンの持ち運び"),
        ),
    ),
    "backpack": _Kind(
        *("リュック", "bags", "BAC", (49, 159), ("nylon", "canvas", "leather")),
        (("the way to work", "通勤"), ("short trips", "小旅行"), ("day hikes", "日帰りハイキング")),
    ),
    "mug": _Kind(
        *("マグカップ", "kitchen", "MUG", (8, 29), ("ceramic", "steel")),
        (
            ("the first coffee of the day", "朝の一杯のコーヒー"),
            ("tea breaks", "ティータイム"),
            ("hot chocolate", "ホットココア"),
        ),
    ),
    "vase": _Kind(
        *("花瓶", "home", "VAS", (19, 89), ("ceramic", "steel", "wood")),
        (
            ("fresh tulips", "チューリップを飾るとき"),
            ("dried flowers", "ドライフラワー"),
            ("a bare windowsill", "窓辺の飾り"),
        ),
    ),
    "lamp": _Kind(
        *("テーブルランプ", "home", "LAM", (39, 149), ("linen", "cotton", "straw")),
        (("reading in bed", "寝る前の読書"), ("a quiet corner", "落ち着いた部屋の一角"), ("the desk", "デスクまわり")),
    ),
    "chair": _Kind(
        *("チェア", "furniture", "CHA", (89, 349), ("velvet", "leather", "wool", "linen")),
        (("the dining table", "ダイニング"), ("the home office", "在宅ワーク"), ("a reading corner", "読書コーナー")),
    ),
    "cushion": _Kind(
        *("クッション", "home", "CUS", (15, 59), ("velvet", "linen", "cotton", "wool")),
        (("the sofa", "ソファ"), ("lazy Sundays", "のんびりした日曜日"), ("a window seat", "窓際のベンチ")),
    ),
    "umbrella": _Kind(
        *("傘", "accessories", "UMB", (19, 69), ("nylon", "cotton")),
        (("sudden showers", "にわか雨"), ("the rainy season", "梅雨の季節"), ("walks in the rain", "雨の日の散歩")),
    ),
    "watch": _Kind(
        *("腕時計", "accessories", "WAT", (59, 299), ("leather", "canvas", "nylon")),
        (("business meetings", "商談"), ("a birthday present", "誕生日の贈り物"), ("daily wear", "毎日の身支度")),
    ),
}

_TITLES = (
    "{color} {pattern} {material} {kind}",
    "{kind} in {color} {material}, {pattern}",
    "{pattern} {kind}: {color}, {material}",
    "{material} {kind}, {pattern}, in {color}",
)
_TITLES_JA = (
    "{color}の{pattern}{kind}（{material}）",
    "{material}の{kind} {color} {pattern}",
    "{pattern}{kind}／{color}／{material}",
    "{kind} {pattern} {material} {color}",
)
_OPENINGS = (
    "{this} {pattern} {kind} in {color} {be} made of {material}.",
    "{article} {color} {kind} in {material}, {look}.",
    "Made of {material}: our {kind} in {color}, {look}.",
    "We made {this} {kind} in {color} {material}, {look}.",
    "{color} is the main tone of {this} {pattern} {kind} made of {material}.",
)
_OPENINGS_JA = (
    "{material}を使った{color}の{pattern}{kind}です。",
    "{color}を基調にした{pattern}の{kind}で、素材は{material}です。",
    "{color}の{material}で仕立てた、{look}{kind}です。",
    "{material}の質感を生かした{kind}。色は{color}、柄は{look_noun}です。",
)
_USES = ("Made for {use}.", "Just right for {use}.", "Think of {use}.", "Good company for {use}.")
_USES_JA = ("{use}にぴったりです。", "{use}におすすめです。", "{use}にいかがですか。", "{use}に重宝します。")
_CLOSINGS = ("", " Designed in our own studio.", " Made in small batches.", " Comes with a two-year guarantee.")
_CLOSINGS_JA = ("", "自社でデザインしました。", "少量ずつ丁寧に作っています。", "2年間の保証付きです。")
_CARE = (
    "keep it away from open fire and from long hours in direct sunlight",
    "wipe it gently with a soft and slightly damp cloth, and let it dry in the shade",
    "small differences in tone come from the way it is made and are no reason for complaint",
    "write to our service team when a part is missing, and we will send it within three days",
    "store it in a dry place, best of all in the paper wrapping that it came with",
)


def _choose_looks(num_products: int, rng: np.random.Generator) -> list[Look]:
    """As many different looks, with all kinds equally often."""
    by_kind = []
    for name, kind in _KINDS.items():
        choices = [(color, pattern, mat) for color in COLORS for pattern in PATTERNS for mat in kind.materials]
        by_kind.append([(name, *choices[i]) for i in rng.permutation(len(choices))])
    most = min(map(len, by_kind)) * len(by_kind)
    if num_products > most:
        raise ValueError(
            f"`num_products` is {num_products}, but there are only {most} different products, as many of each kind. "
            "Ask for fewer."
        )
    chosen = [by_kind[i % len(by_kind)][i // len(by_kind)] for i in range(num_products)]
    order = rng.permutation(num_products)
    return [Look(*chosen[i], stretch=(float(rng.uniform(0.93, 1.05)), float(rng.uniform(0.95, 1.04)))) for i in order]


def _write_texts(look: Look, rng: np.random.Generator) -> dict[str, str]:
    """Title and description in both languages."""

    def pick(templates: tuple[str, ...]) -> str:
        return templates[rng.integers(len(templates))]

    kind = _KINDS[look.kind]
    use, use_ja = kind.uses[rng.integers(len(kind.uses))]
    plain, dark = look.pattern == "plain", second_color_is_dark(look.color)
    plural = look.kind == "trousers"
    words = {
        "kind": look.kind,
        "color": look.color,
        "pattern": look.pattern,
        "material": look.material,
        "this": "these" if plural else "this",
        "be": "are" if plural else "is",
        "article": "a pair of" if plural else "an" if look.color == "orange" else "a",
        "look": "with no pattern at all" if plain else f"with {'dark' if dark else 'cream'} {_MOTIF[look.pattern]}",
        "use": use,
    }
    pattern_ja = _PATTERN_JA[look.pattern]
    tone_ja = "濃い色" if dark else "生成り色"
    words_ja = {
        "kind": kind.ja,
        "color": _COLOR_JA[look.color],
        "pattern": pattern_ja,
        "material": _MATERIAL_JA[look.material],
        "look": "柄のないシンプルな" if plain else f"{tone_ja}の{pattern_ja}が映える",
        "look_noun": pattern_ja if plain else f"{tone_ja}の{pattern_ja}",
        "use": use_ja,
    }
    sentences = (pick(_OPENINGS).format(**words), pick(_USES).format(**words))
    return {
        "title": _capital(pick(_TITLES).format(**words)),
        "description": " ".join(map(_capital, sentences)) + pick(_CLOSINGS),
        "title_ja": pick(_TITLES_JA).format(**words_ja),
        "description_ja": (pick(_OPENINGS_JA) + pick(_USES_JA) + pick(_CLOSINGS_JA)).format(**words_ja),
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _views(index: int) -> list[str]:
    """Which pictures the product at this place has: every third has more than one."""
    if index % 3:
        return ["front"]
    return (["front", "turned"], ["front", "turned", "detail"], ["front", "detail"])[index // 3 % 3]


def _add_faults(
    folder: Path, rows: list[dict[str, str]], kinds: Sequence[str], rng: np.random.Generator
) -> list[dict[str, object]]:
    """Spoils one row for each kind named, in place, and says which."""
    # Rows with one picture: a second, sound one would keep the product in the shop.
    places = rng.permutation([i for i, row in enumerate(rows) if not row["additional_images"]])
    # A row with several pictures is not spoilt itself.
    originals = itertools.cycle([row for row in rows if row["additional_images"]])
    swapped = [rows[place] for place, kind in zip(places, kinds, strict=False) if kind == "swapped_text"]
    texts = [{field: row[field] for field in _TEXT_FIELDS} for row in swapped]
    faults: list[dict[str, object]] = []
    for place, kind in zip(places, kinds, strict=False):
        row = rows[place]
        picture = folder / row["image"]
        field = "image"
        fault: dict[str, object] = {"row": int(place) + 1, "product_id": row["product_id"]}
        if kind == "truncated_image":
            content = picture.read_bytes()
            picture.write_bytes(content[: len(content) // 2])
        elif kind == "empty_image":
            picture.write_bytes(b"")
        elif kind == "missing_image":
            picture.unlink()
        elif kind == "not_an_image":
            picture.write_text("The photographer will send this one next week.\n", encoding="utf-8", newline="\n")
        elif kind in ("no_text", "blank_text"):
            field = "|".join(_TEXT_FIELDS)
            row.update(dict.fromkeys(_TEXT_FIELDS, "" if kind == "no_text" else " \t "))
        elif kind == "long_text":
            field = "description"
            notes = (f"Note {i + 1}: {_CARE[i % len(_CARE)]}." for i in range(60))
            row["description"] = " ".join([row["description"], *notes])
        elif kind == "swapped_text":
            field = "|".join(_TEXT_FIELDS)
            # Each has the texts of the one before it.
            other = swapped.index(row) - 1
            row.update(texts[other])
            fault["same_as"] = swapped[other]["product_id"]
        else:
            original = next(originals)
            fault["same_as"] = original["product_id"]
            if kind == "duplicate_image":
                shutil.copyfile(folder / original["image"], picture)
            else:
                with Image.open(folder / original["image"]) as image:
                    size = [round(0.8 * side) for side in image.size]
                    image.resize(size, Image.Resampling.LANCZOS).save(picture, quality=70)
        faults.append({**fault, "field": field, "kind": kind})
    return sorted(faults, key=lambda fault: str(fault["product_id"]))


def write_sample_shop(
    output_dir: str | os.PathLike[str],
    *,
    num_products: int = 320,
    seed: int = 0,
    image_size: int = 224,
    faults: bool = True,
    fault_rates: Mapping[str, float] | None = None,
) -> Path:
    r"""
    Draws a small shop: 16 kinds of products in 12 colours, 6 patterns and 13 materials, with texts in English and
    Japanese. No two products share kind, colour, pattern and material, so that a text names one product. The same
    arguments give the same files, byte for byte, with the same versions of NumPy and Pillow.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder to write `products.csv`, `faults.json` and `images/` into; made where it does not exist. Files of
            the same names are replaced.
        num_products (`int`, *optional*, defaults to 320):
            Rows of the table, 1 to 2304, and at least 16 with `faults`. Every third product has two or three pictures.
        seed (`int`, *optional*, defaults to 0):
            Seed of everything that is drawn by lot, 0 or more.
        image_size (`int`, *optional*, defaults to 224):
            Width and height of the JPEG files in pixels, at least 32.
        faults (`bool`, *optional*, defaults to `True`):
            Whether to spoil eight rows, one for each of `FAULT_KINDS`, as real catalogues are. `faults.json` then
            lists for each its data row in the table counted from 1, `product_id`, field (several joined by bars) and
            kind; without faults it is an empty list.
        fault_rates (`Mapping[str, float]`, *optional*):
            In place of those eight the share of the rows with each kind of fault, of `FAULT_KINDS` and
            `RARE_FAULT_KINDS`; together at most 0.6. Rows with a second picture are never spoilt.

    Returns:
        `pathlib.Path`: the table, with the columns `sku`, `product_id`, `title`, `description`, `title_ja`,
        `description_ja`, `category`, `color`, `pattern`, `material`, `price`, `image` and `additional_images` (paths
        relative to the table, joined by bars).

    Raises:
        `ValueError`: `num_products`, `seed`, `image_size` or a rate is out of range, or there is no such fault.

    Example:

    ```python
    >>> from fusionmatch.catalogue.sample_shop import write_sample_shop

    >>> table = write_sample_shop("shop", num_products=64)
    ```"""
    kinds: list[str] = []
    if fault_rates is not None:
        known = (*FAULT_KINDS, *RARE_FAULT_KINDS)
        wrong = {kind: rate for kind, rate in fault_rates.items() if kind not in known or not 0 <= rate <= 1}
        if wrong or sum(fault_rates.values()) > 0.6:
            raise ValueError(
                f"`fault_rates` must be shares in [0, 1] of {', '.join(known)}, together at most 0.6, got "
                f"{dict(fault_rates)}."
            )
        counts = {kind: round(rate * num_products) for kind, rate in fault_rates.items()}
        # One text has nothing to change places with.
        counts |= {kind: 2 for kind, count in counts.items() if kind == "swapped_text" and count == 1}
        kinds = [kind for kind, count in counts.items() for _ in range(count)]
    elif faults:
        kinds = list(FAULT_KINDS)
    fewest = _FEWEST_WITH_FAULTS if faults and fault_rates is None else 1
    if num_products < fewest:
        remedy = f", or `faults=False`, which allows fewer than {fewest}" if faults else ""
        raise ValueError(f"`num_products` is {num_products}; ask for at least {fewest}{remedy}.")
    if seed < 0:
        raise ValueError(f"`seed` is {seed}; it has to be 0 or more.")
    if image_size < 32:
        raise ValueError(f"`image_size` is {image_size}; below 32 pixels nothing can be told from anything else.")
    rng = np.random.default_rng(seed)
    looks = _choose_looks(num_products, rng)

    folder = Path(output_dir)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for index, look in enumerate(tqdm(looks, desc="Drawing the sample shop", unit="product")):
        kind = _KINDS[look.kind]
        product_id = f"P{index + 1:04d}"
        pictures = []
        for number, view in enumerate(_views(index)):
            pictures.append(f"images/{product_id}-{number + 1}.jpg")
            image = draw_product(look, view, image_size, np.random.default_rng([seed, index, number]))
            image.save(folder / pictures[-1], quality=88)
        rows.append(
            {
                "sku": f"{kind.code}-{index + 1:04d}",
                "product_id": product_id,
                **_write_texts(look, rng),
                "category": kind.category,
                "color": look.color,
                "pattern": look.pattern,
                "material": look.material,
                "price": f"{rng.integers(*kind.prices)}.90",
                "image": pictures[0],
                "additional_images": "|".join(pictures[1:]),
            }
        )
    found = _add_faults(folder, rows, kinds, rng) if kinds else []

    table = folder / "products.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    listing = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    (folder / "faults.json").write_text(listing, encoding="utf-8", newline="\n")
    logger.info("Wrote %d products to %s, %d of them with a fault.", len(rows), table, len(found))
    return table
