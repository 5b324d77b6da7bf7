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
"""Which columns hold the picture, the text and the product: named by the user, else guessed from usual names."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_IMAGE = _names(
    """
    image image_path file_name filename image_file picture photo img image_link image_url picture_path photo_path
    img_path main_image picture_url photo_url img_url images image_paths image_urls pictures photos file path
    画像 画像ファイル 写真
    """
)
_ADDITIONAL = _names(
    """
    additional_images additional_image additional_image_link additional_image_links additional_image_urls
    extra_images more_images other_images alternate_images image_gallery gallery images pictures photos 追加画像
    """
)
_TEXT_LISTS = _names("captions texts sentences descriptions caption text raw")
_CAPTION = _names("caption text captions texts sentence alt_text キャプション")
_TITLE = _names("title name product_name product_title item_name headline 商品名 タイトル")
_DESCRIPTION = _names(
    """
    description product_description item_description long_description short_description body details
    商品説明 説明 説明文
    """
)
# Names of the family come before names of the sellable variant: variants share pictures and descriptions.
_GROUP = _names(
    """
    item_group_id group_id group parent_sku parent_id parent_asin product_group product_id product style_id
    商品コード 商品番号
    """
)
_IMAGE_ID = _names("image_id img_id photo_id picture_id")

_EMPTY = {"", "n/a", "n.a.", "na", "nan", "none", "null", "-", "--", "–", "—", "?", "...", "…", "tbd", "todo"}
_EMPTY |= {"no description", "no title", "lorem ipsum", "なし", "無し", "未設定", "説明なし", "準備中"}
_SENTENCE_END = ".!?…。！？｡．:;"
_CLOSING = "\"'”’)]」』）】"
_URL = re.compile(r"^[a-z]+://", re.IGNORECASE)
_PICTURE_NAME = re.compile(rf"({_URL.pattern})|(\.[a-z][a-z0-9]{{2,4}}$)", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """
    The columns a catalogue is read by.

    Args:
        image (`str`): Column of the pictures.
        texts (`tuple[str, ...]`): Columns of the text, in the order they are joined.
        additional_images (`str`, *optional*): Column of further pictures of the same row.
        group (`str`, *optional*): Column of the product.
        image_id (`str`, *optional*): Column of the picture's id.
        split (`str`, *optional*): Column of the user's own split; never guessed.
        guessed (`frozenset[str]`): Which of the fields above were guessed.
    """

    image: str
    texts: tuple[str, ...]
    additional_images: str | None = None
    group: str | None = None
    image_id: str | None = None
    split: str | None = None
    guessed: frozenset[str] = frozenset()

    def say(self, word: Callable[[str], str] = str) -> str:
        """Which column is read as what, in words; `word` gives those of another language."""

        def part(role: str, label: str, otherwise: str = "") -> str:
            names = getattr(self, role)
            if not names:
                return f"{word(label)}: {otherwise}"
            joined = " + ".join(f"'{name}'" for name in ((names,) if isinstance(names, str) else names))
            return f"{word(label)}: {joined}" + (f" ({word('guessed')})" if role in self.guessed else "")

        parts = [
            part("image", "image"),
            part("additional_images", "further images", word("none")),
            part("texts", "text"),
            part("group", "product", f"'{self.image_id}'" if self.image_id else word("each picture its own")),
            *([part("split", "split")] if self.split else []),
        ]
        return ", ".join(parts)

    def __str__(self) -> str:
        return self.say()


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing: nothing, blanks, or a placeholder such as `n/a`, `nan`, `none` or `-`."""
    return value is None or str(value).strip().lower() in _EMPTY


def join_texts(pieces: Iterable[Any]) -> str:
    """
    Joins the pieces of a row's text into sentences.

    Each piece is stripped and given a full stop when it ends without sentence punctuation (`。！？` count); they are
    joined by one space, and pieces that say nothing are left out. The stop is `。` after Japanese and Chinese letters.

    Args:
        pieces (`Iterable`): Cells, in the order they are to be read.

    Returns:
        `str`: The text, empty when no piece says anything.
    """
    said = [str(piece).strip() for piece in pieces if not is_empty(piece)]
    return " ".join(piece if _ends_sentence(piece) else piece + _full_stop(piece) for piece in said)


def _ends_sentence(piece: str) -> bool:
    bare = piece.rstrip(_CLOSING)
    return bool(bare) and bare[-1] in _SENTENCE_END


def _full_stop(piece: str) -> str:
    # Kana, Chinese characters and full-width forms end their sentences with the full-width stop.
    return "。" if re.match("[\u3005-\u30ff\u3400-\u9fff\uff66-\uff9f]", piece[-1]) else "."


def split_cell(value: Any, separator: str | None) -> list[str]:
    """Gives the entries of a cell that is a list, or joins them by the separator; empty ones are left out."""
    if isinstance(value, list):
        entries = value
    elif value is None:
        entries = []
    else:
        entries = str(value).split(separator) if separator else [value]
    return [str(entry).strip() for entry in entries if not is_empty(entry)]


def guess_separator(cells: Iterable[Any]) -> str | None:
    """
    Guesses what joins several picture names in a column: a bar, a line break, a semicolon or a comma.

    A separator is believed only when every part it makes looks like a picture's name, and like a URL in a cell that
    begins with one, so that a comma inside a name does not split it.

    Returns:
        `str`, *optional*: The separator; `None` when every cell names one picture.
    """
    believed = dict.fromkeys(("|", "\n", ";", ","))
    for text in cells:
        for separator in believed if isinstance(text, str) else ():
            if separator in text and believed[separator] is not False:
                believed[separator] = _names_pictures([part.strip() for part in text.split(separator)])
    return next((separator for separator, found in believed.items() if found), None)


def _names_pictures(parts: Sequence[str]) -> bool:
    named = [part for part in parts if part]
    expected = _URL if named and _URL.search(named[0]) else _PICTURE_NAME
    return all(expected.search(part) for part in named)


def check_column(name: str, names: Sequence[str], argument: str) -> str:
    """
    Checks that a column exists.

    Raises:
        `ValueError`: It does not; the message lists the columns and the nearest name.
    """
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(
        name.lower(), [other.lower() for other in names], n=1
    )
    # A nearest name found in lower case is given back as the catalogue writes it.
    near = [other for other in names if near and other.lower() == near[0].lower()]
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"{argument}: there is no column '{name}'.{hint} The columns are: {', '.join(map(repr, names))}.")


def choose_columns(
    table: pa.Table,
    embedded: Sequence[str] = (),
    *,
    image_column: str | None = None,
    additional_images_column: str | None = None,
    caption_column: str | Sequence[str] | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
) -> Columns:
    """
    Chooses the columns of a catalogue: those named, and a guess by usual names for the others.

    Without `caption_column` the text is, in this order: a column that holds a list of texts (each is a text of its
    own), a column called caption or text, a title-like and a description-like column joined by [`join_texts`], or the
    one of the two there is. A product column is not guessed when it has the same value everywhere or none.

    Args:
        table (`pa.Table`): The columns that do not embed pictures.
        embedded (`Sequence[str]`, *optional*): Names of the columns that embed pictures.
        image_column, additional_images_column, caption_column, group_column, split_column: As in [`load_catalogue`].

    Raises:
        `ValueError`: A named column does not exist, or the picture or text column cannot be guessed.
    """
    names = [*embedded, *table.column_names]
    guessed = set()
    by_plain_name = {re.sub(r"[\s\-]+", "_", name.strip().lower()): name for name in reversed(names)}

    def find(usual: Iterable[str], taken: Iterable[str | None] = ()) -> str | None:
        return next(
            (by_plain_name[one] for one in usual if one in by_plain_name and by_plain_name[one] not in taken), None
        )

    if image_column is not None:
        image = check_column(image_column, names, "image_column")
    else:
        guessed.add("image")
        image = find(_IMAGE) or (embedded[0] if len(embedded) == 1 else None)
        if image is None:
            raise ValueError(
                f"No picture column could be guessed among {', '.join(map(repr, names)) or 'no columns'}. "
                "Name it with image_column=..."
            )
    if additional_images_column is not None:
        additional = check_column(additional_images_column, names, "additional_images_column")
    else:
        additional = find(_ADDITIONAL, taken=[image])
        guessed.add("additional_images")
    if caption_column is not None:
        wanted = [caption_column] if isinstance(caption_column, str) else list(caption_column)
        if not wanted:
            raise ValueError("caption_column is an empty list; name at least one column or leave it out.")
        texts = tuple(check_column(name, table.column_names, "caption_column") for name in wanted)
    else:
        guessed.add("texts")
        texts = _guess_texts(table, find)
    image_id = find(_IMAGE_ID, taken=[image])
    guessed.add("image_id")
    if split_column is not None:
        check_column(split_column, table.column_names, "split_column")
    if group_column is not None:
        check_column(group_column, table.column_names, "group_column")
    else:
        guessed.add("group")
        taken = [image, additional, split_column, *texts, *embedded]
        group_column = find([name for name in _GROUP if _groups(table, by_plain_name.get(name))], taken)
    return Columns(image, texts, additional, group_column, image_id, split_column, frozenset(guessed))


def _guess_texts(table: pa.Table, find: Any) -> tuple[str, ...]:
    strings = [item.name for item in table.schema if _is_text(item.type)]
    lists = [item.name for item in table.schema if pa.types.is_list(item.type) and _is_text(item.type.value_type)]
    others = [name for name in table.column_names if name not in strings]
    found = find(_TEXT_LISTS, taken=[name for name in table.column_names if name not in lists])
    found = found or find(_CAPTION, taken=others)
    if found:
        return (found,)
    both = tuple(name for name in (find(_TITLE, taken=others), find(_DESCRIPTION, taken=others)) if name)
    if both:
        return both
    raise ValueError(
        f"No text column could be guessed among {', '.join(map(repr, strings + lists)) or 'columns of other kinds'}. "
        "Name it with caption_column=..., or several to be joined with caption_column=[..., ...]."
    )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _groups(table: pa.Table, name: str | None) -> bool:
    if name is None or name not in table.column_names or pa.types.is_nested(table[name].type):
        return False
    seen = set()
    for part in table[name].chunks:
        seen.update(str(value) for value in part.unique().to_pylist() if not is_empty(value))
        if len(seen) > 1:
            return True
    return False
