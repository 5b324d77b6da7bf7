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
"""Concepts of a catalogue: which words, how they hang together, and a file that people can edit."""

import json
import math

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

from fusionmatch.catalogue import ConceptBank, build_concepts, load_catalogue
from fusionmatch.catalogue import concepts as room
from fusionmatch.catalogue.sample_shop import write_sample_shop


def rows(texts, **columns):
    count = len(texts)
    content = {"texts": texts, "product": [str(i) for i in range(count)], "source_row": list(range(1, count + 1))}
    return datasets.Dataset.from_dict(content | columns)


DOGS = [
    ["A black dog runs through the water.", "Two dogs are running."],
    ["A black dog with a red ball"],
    ["A small boy holds the red balls"],
    ["The boy is holding water"],
]


def test_words_are_lemmas_with_their_part_of_speech():
    bank = build_concepts(rows(DOGS), min_count=2, disable_tqdm=True)
    found = {word: (kind, count) for word, kind, count in zip(bank.words, bank.kinds, bank.counts, strict=True)}
    assert found == {
        word: (kind, 2)
        for kind, words in {"noun": "dog ball boy water", "adjective": "black red", "verb": "hold"}.items()
        for word in words.split()
    }
    index = {word: i for i, word in enumerate(bank.words)}
    assert bank.together[index["dog"], index["black"]] == 2
    assert bank.together[index["boy"], index["water"]] == 1
    assert bank.together[index["dog"], index["hold"]] == 0
    assert (bank.documents, bank.language) == (4, "en")


def test_words_are_taken_seven_to_two_to_one():
    texts = [
        [f"The {noun} is {adjective}"]
        for noun in ("dog", "cat", "cow", "pig", "hen", "fox")
        for adjective in ("red", "big")
    ]
    bank = build_concepts(rows(texts), num_concepts=5, min_count=1, disable_tqdm=True)
    assert len(bank) == 5
    assert bank.kinds[:4] == ["noun", "noun", "noun", "adjective"]


def test_attributes_are_used_as_they_are_and_come_first():
    data = rows(
        [["plain"], ["text"], ["here"]],
        color=["Sky Blue", "Sky Blue", None],
        material=["Cotton|Organic Wool", "Cotton", "Cotton &amp; Silk/Organic Wool"],
    )
    bank = build_concepts(data, attribute_columns=["color", "material"], language=None, disable_tqdm=True)
    assert dict(zip(bank.words, bank.kinds, strict=True)) == {
        "cotton": "material",
        "organic wool": "material",
        "sky blue": "color",
    }
    assert bank.language is None


def test_a_colour_is_a_colour_however_often_texts_use_it():
    data = rows([["The black, black mug"], ["A black bag"]], color=["Black", "Black"])
    bank = build_concepts(data, attribute_columns=["color"], disable_tqdm=True)
    assert bank.kinds[bank.words.index("black")] == "color"


def test_rows_are_labelled_with_what_they_name(tmp_path):
    data = rows(DOGS, color=["Black|Red", None, "black", "Lilac"])
    bank = build_concepts(data, attribute_columns=["color"], min_count=2, disable_tqdm=True)
    struck = json.loads(bank.save(tmp_path / "concepts.json").read_text())
    struck["concepts"] = [row for row in struck["concepts"] if row["word"] != "hold"]
    (tmp_path / "concepts.json").write_text(json.dumps(struck))
    bank = ConceptBank.load(tmp_path / "concepts.json")
    # The same texts again, as of another catalogue; further words are none of the bank's.
    other = rows([[*DOGS[0], "An elephant holds the leash"], DOGS[3], ["nothing"]], color=["Red", None, "mauve"])
    labelled = bank.label(bank.label(other, disable_tqdm=True), disable_tqdm=True)
    assert labelled["concepts"][:] == [["black", "dog", "red", "water"], ["boy", "water"], []]
    with pytest.raises(ValueError, match="no attribute column"):
        bank.label(rows(DOGS), disable_tqdm=True)


def test_further_pictures_of_a_row_are_no_further_documents():
    data = datasets.Dataset.from_dict(
        {"texts": [["red dog"], ["red dog"], ["red mug"]], "product": ["a", "a", "b"], "source_row": [1, 1, 2]}
    )
    bank = build_concepts(data, min_count=1, disable_tqdm=True)
    assert bank.documents == 2
    assert bank.counts[bank.words.index("red")] == 2 and bank.counts[bank.words.index("dog")] == 1


def test_japanese_and_german():
    bank = build_concepts(
        rows([["赤いマグカップです。"], ["赤い傘と青いマグカップ"]]), language="ja", disable_tqdm=True
    )
    assert dict(zip(bank.words, bank.kinds, strict=True)) == {"マグカップ": "noun", "赤い": "adjective"}
    bank = build_concepts(
        rows([["Ein roter Ball"], ["Die roten Bälle liegen hier"]]), language="de", disable_tqdm=True
    )
    assert dict(zip(bank.words, bank.kinds, strict=True)) == {"ball": "noun", "rot": "adjective"}


def test_the_graph_by_hand():
    """Counts 4 and 2, together 2: P = (1/2, 1); both are above the threshold, so each is the other's one neighbour."""
    together = np.array([[4, 2, 0], [2, 2, 0], [0, 0, 5]])
    bank = ConceptBank(["a", "b", "c"], ["noun"] * 3, [4, 2, 5], together, 9)
    assert 5 ** (0.5 - 0.02) - 5**-0.02 > 0.3
    diagonal = 1 / 1.25
    assert bank.graph() == approx(np.array([[diagonal, 0.2, 0], [0.2, diagonal, 0], [0, 0, 1]]))
    # Each b stands beside an a, few a beside a b: a takes from b, which is its neighbour, and not the other way round.
    rarer = ConceptBank(["a", "b"], ["noun"] * 2, [100, 10], np.array([[100, 10], [10, 10]]), 100)
    assert rarer.graph() == approx(np.array([[1, 0.25 / 1.25**0.5], [0, 0.8]]))
    # P = 1/10 falls below it: 5^0.08 - 5^-0.02 = 0.17.
    rare = ConceptBank(["a", "b"], ["noun"] * 2, [10, 10], np.array([[10, 1], [1, 10]]), 19)
    assert rare.graph() == approx(np.eye(2))


@given(seed=st.integers(0, 10**6), size=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_the_graph_never_blows_up_a_vector(seed, size):
    held = np.random.default_rng(seed).random((30, size)) < 0.3
    together = held.T.astype(int) @ held.astype(int)
    bank = ConceptBank([str(i) for i in range(size)], ["noun"] * size, together.diagonal().tolist(), together, 30)
    graph = bank.graph()
    assert np.isfinite(graph).all() and (graph >= 0).all()
    assert np.abs(np.linalg.eigvals(graph)).max() <= 1 + 1e-9


def test_the_file_is_read_back_and_can_be_edited(tmp_path):
    bank = build_concepts(rows(DOGS), disable_tqdm=True)
    again = ConceptBank.load(bank.save(tmp_path / "concepts.json"))
    assert (again.words, again.kinds, again.counts) == (bank.words, bank.kinds, bank.counts)
    assert (again.together == bank.together).all() and again.documents == 4
    content = json.loads((tmp_path / "concepts.json").read_text())
    content["concepts"] = [row for row in content["concepts"] if row["word"] != "hold"]
    (tmp_path / "edited.json").write_text(json.dumps(content))
    edited = ConceptBank.load(tmp_path / "edited.json")
    kept = [i for i, word in enumerate(bank.words) if word != "hold"]
    assert edited.words == [bank.words[i] for i in kept]
    assert (edited.together == bank.together[np.ix_(kept, kept)]).all()


@pytest.mark.parametrize("content", ["[]", "{", '{"format": "other"}', '{"format": "fusionmatch-concepts-1"}'])
def test_another_file_is_refused(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="is no concept bank"):
        ConceptBank.load(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match=r"y\.json"):
        ConceptBank.load(tmp_path / "y.json")


def test_what_cannot_be_done_is_said(monkeypatch):
    with pytest.raises(ValueError, match="'colour'"):
        build_concepts(rows(DOGS), attribute_columns=["colour"])
    with pytest.raises(ValueError, match="'tlh'"):
        build_concepts(rows(DOGS), language="tlh")
    with pytest.raises(ValueError, match="No concept occurs in 9"):
        build_concepts(rows(DOGS), min_count=9, disable_tqdm=True)
    with pytest.raises(ValueError, match="num_concepts"):
        build_concepts(rows(DOGS), 0)
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "fusionmatch\[concepts\]"'):
        build_concepts(rows(DOGS))


def test_a_real_catalogue_twice_the_same(tmp_path):
    splits = load_catalogue(write_sample_shop(tmp_path / "shop", num_products=40, image_size=32))
    banks = [
        build_concepts(splits["train"], attribute_columns=["color", "material"], disable_tqdm=True) for _ in range(2)
    ]
    assert banks[0].words == banks[1].words
    assert {"color", "material", "noun"} <= set(banks[0].kinds)
    assert math.isfinite(banks[0].graph().sum())
