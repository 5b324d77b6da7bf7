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
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionmatch.catalogue.splits import (
    check_split_products,
    product_share,
    split_name,
    split_products,
    tie_products,
    warn_of_leaks,
)


ROWS = st.lists(st.tuples(st.text(max_size=4), st.integers(0, 30).map(str)), min_size=1, max_size=60)
SIZES = st.tuples(st.floats(0, 0.49), st.floats(0, 0.49))


@given(rows=ROWS, sizes=SIZES, seed=st.integers(0, 5))
def test_neither_a_product_nor_a_picture_stands_in_two_splits(rows, sizes, seed):
    products, pictures = zip(*rows, strict=True)
    splits = split_products(products, pictures, *sizes, seed)
    for names in (products, pictures):
        assert len(set(zip(names, splits, strict=True))) == len(set(names))


@given(old=st.lists(st.text(max_size=4), min_size=1), new=st.lists(st.text(max_size=4)), seed=st.integers(0, 5))
def test_a_product_stays_where_it_is_when_rows_are_added(old, new, seed):
    def split(products):
        pictures = [f"{product}.jpg" for product in products]
        return dict(zip(products, split_products(products, pictures, 0.2, 0.3, seed), strict=True))

    before, after = split(old), split(new + old)
    assert {product: after[product] for product in before} == before


@given(rows=ROWS)
def test_a_larger_test_split_keeps_the_products_of_the_smaller(rows):
    products, pictures = zip(*rows, strict=True)
    small, large = (split_products(products, pictures, 0.0, size) for size in (0.2, 0.6))
    assert all(b == "test" for a, b in zip(small, large, strict=True) if a == "test")


def test_shares_are_met_over_many_products():
    products = [f"P{number}" for number in range(20_000)]
    splits = split_products(products, products, 0.1, 0.2)
    # Three standard deviations of a binomial count over 20,000 are 127 and 170.
    assert abs(splits.count("validation") - 2_000) < 127
    assert abs(splits.count("test") - 4_000) < 170


def test_size_zero_leaves_the_split_out():
    products = [f"P{number}" for number in range(500)]
    assert set(split_products(products, products, 0, 0.2)) == {"train", "test"}
    assert set(split_products(products, products, 0.1, 0)) == {"train", "validation"}
    assert set(split_products(products, products, 0, 0)) == {"train"}


def test_the_placing_is_the_same_on_every_machine_and_for_ever():
    # Literal values: a change of the hash would move every user's test products into the train split.
    assert product_share("MH01") == pytest.approx(0.10624065218881595, abs=1e-15)
    assert product_share("赤い帽子", seed=7) == pytest.approx(0.6510053327989332, abs=1e-15)


def test_shared_pictures_tie_products_in_chains():
    tied = tie_products(["c", "b", "b", "a", "z"], ["1", "1", "2", "2", "9"])
    assert tied == {"a": "a", "b": "a", "c": "a", "z": "z"}


def test_a_stand_in_picture_shared_by_many_products_is_warned_of(caplog):
    products = [f"P{number:02}" for number in range(40)]
    with caplog.at_level(logging.WARNING):
        tie_products(products, ["none.jpg"] * 30 + products[30:])
    assert "30 of 40 products" in caplog.text
    caplog.clear()
    tie_products(products, products)
    assert not caplog.records


@pytest.mark.parametrize(
    ("sizes", "word"), [((-0.1, 0.2), "validation_size"), ((0.1, 1.0), "test_size"), ((0.5, 0.5), "train split")]
)
def test_sizes_out_of_range_are_refused(sizes, word):
    with pytest.raises(ValueError, match=word):
        split_products(["a"], ["1"], *sizes)


@pytest.mark.parametrize(
    ("given_name", "name"), [(" Val ", "validation"), ("DEV", "validation"), ("eval", "test"), ("holdout", None)]
)
def test_usual_names_of_splits(given_name, name):
    assert split_name(given_name) == name


def test_a_split_of_one_product_is_refused_with_count_and_remedy():
    with pytest.raises(ValueError, match=r"test split holds 1 product\(s\) of 3.*Do this"):
        check_split_products(["train", "train", "test", "test"], ["a", "b", "c", "c"], ["train", "test"], "Do this.")


def test_leaks_between_own_splits_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_leaks(["train", "test", "test"], ["a", "a", "b"], ["1", "2", "1"])
    assert "1 product(s) stand in more than one split, such as 'a'" in caplog.text
    assert "1 picture(s)" in caplog.text
