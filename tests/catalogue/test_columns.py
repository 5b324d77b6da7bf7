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
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionmatch.catalogue.columns import choose_columns, guess_separator, is_empty, join_texts, split_cell


def choose(columns, **named):
    return choose_columns(pa.table(columns), **named)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["Red hat", "Keeps the sun off"], "Red hat. Keeps the sun off."),
        (["  Red hat!  ", "Who asks?", "It does."], "Red hat! Who asks? It does."),
        (["Red hat", "", None, "n/a", "Wool"], "Red hat. Wool."),
        (
            ["赤い帽子", "日よけになります。", "本当？", "もちろん！"],
            "赤い帽子。 日よけになります。 本当？ もちろん！",
        ),
        (['The "best."', "Hat (red)"], 'The "best." Hat (red).'),
        (["-", " ", "nan"], ""),
        ([12, 3.5], "12. 3.5."),
    ],
)
def test_join_texts(pieces, text):
    assert join_texts(pieces) == text


@given(st.lists(st.text()))
def test_joining_keeps_every_piece_in_order_and_ends_each(pieces):
    text = join_texts(pieces)
    position = 0
    for piece in pieces:
        if not is_empty(piece):
            position = text.index(piece.strip(), position) + len(piece.strip())
    assert text == text.strip()
    assert join_texts([text]) == text  # whatever was joined ends as a sentence does
    assert is_empty(text) == all(is_empty(piece) for piece in pieces)


def test_title_and_description_are_joined_when_both_exist():
    columns = choose({"image": ["a"], "description": ["d"], "title": ["t"]})
    assert columns.texts == ("title", "description")
    assert "texts" in columns.guessed


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ({"title": ["t"], "description": ["d"], "caption": ["c"]}, ("caption",)),
        ({"caption": ["c"], "captions": [["c", "d"]]}, ("captions",)),
        ({"title": ["t"], "captions": [["c", "d"]]}, ("captions",)),
        ({"Product Name": ["t"]}, ("Product Name",)),
        ({"商品名": ["帽子"], "説明": ["赤い"]}, ("商品名", "説明")),
        ({"title": [3], "description": ["d"]}, ("description",)),
    ],
)
def test_guessed_texts(columns, texts):
    assert choose({"image": ["a"], **columns}).texts == texts


def test_named_columns_are_not_reported_as_guessed():
    columns = choose(
        {"image": ["a", "b"], "foto": ["a", "b"], "a": ["x", "y"], "b": ["x", "y"], "kind": ["1", "1"]},
        image_column="foto",
        caption_column=["b", "a"],
        group_column="kind",
    )
    assert (columns.image, columns.texts, columns.group) == ("foto", ("b", "a"), "kind")
    assert not {"image", "texts", "group"} & columns.guessed
    assert str(columns) == "image: 'foto', further images: none, text: 'b' + 'a', product: 'kind'"


def test_a_group_column_of_one_value_or_none_is_not_guessed():
    table = {"image": ["a", "b"], "text": ["x", "y"]}
    assert choose({**table, "product": ["hats", "hats"]}).group is None
    assert choose({**table, "product": ["", None]}).group is None
    assert choose({**table, "product": ["hat", "cap"]}).group == "product"
    assert choose({**table, "product_id": ["1", "2"], "item_group_id": ["7", "8"]}).group == "item_group_id"
    assert choose({**table, "product_id": ["1", "2"], "item_group_id": ["7", "7"]}).group == "product_id"


def test_a_wrong_name_lists_the_columns_and_the_nearest():
    with pytest.raises(ValueError, match=r"caption_column.*'Titel'.*Did you mean 'Title'.*'Image', 'Title', 'Colour'"):
        choose({"Image": ["a"], "Title": ["t"], "Colour": ["red"]}, caption_column="Titel")


@pytest.mark.parametrize(("missing", "argument"), [("image", "image_column"), ("text", "caption_column")])
def test_what_cannot_be_guessed_is_asked_for(missing, argument):
    columns = {"image": ["a"], "text": ["t"], "text_ja": ["あ"]}
    columns["other"] = columns.pop(missing)
    with pytest.raises(ValueError, match=rf"'other'.*{argument}=\.\.\."):
        choose(columns)


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["a.jpg|b.png", "c.jpg", ""], "|"),
        (["a.jpg, b.jpeg"], ","),
        (["x/a.jpg;x/b.webp;"], ";"),
        (["a.jpg\nb.jpg"], "\n"),
        (["red, large.jpg", "b.jpg"], None),
        (["a.jpg,b.jpg", "red, large.jpg"], None),
        (["http://x/a|http://x/b"], "|"),
        (["https://i.example/p0,1.jpg,600x600.jpg"], None),
        (["https://i.example/a.jpg,https://i.example/b.jpg,", "c.jpg,d.jpg"], ","),
        (["a.jpg", None], None),
    ],
)
def test_the_separator_is_guessed_from_whole_picture_names(cells, separator):
    assert guess_separator(cells) == separator


def test_cells_split_into_entries():
    assert split_cell(" a.jpg | |b.jpg|", "|") == ["a.jpg", "b.jpg"]
    assert split_cell(["a.jpg", None, " "], None) == ["a.jpg"]
    assert split_cell("a, b.jpg", None) == ["a, b.jpg"]
    assert split_cell(None, "|") == []
