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
"""Which pairs meet in a batch."""

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionmatch.evaluation.retrieval import embed_images, embed_texts
from fusionmatch.training import FusionMatchTrainer
from fusionmatch.training.data import PairDataset
from fusionmatch.training.sampling import SpreadSampler

from .test_trainer import freeze_towers, make_trainer


def pairs_of(products, groups=None, texts=None):
    count = len(products)
    content = {"texts": texts or [[f"text {i}"] for i in range(count)], "product": [str(p) for p in products]}
    content |= {"image": [0] * count, "picture_group": [str(g) for g in (groups or range(count))]}
    return PairDataset(datasets.Dataset.from_dict(content))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=4, max_size=60), st.integers(2, 6), st.integers(0, 3))
def test_every_row_once_and_no_product_twice_in_a_batch(products, batch_size, epoch):
    if len(set(products)) < 2:
        products = [*products, 98, 99]
    pairs = pairs_of(products)
    pairs.set_epoch(epoch)
    order = list(SpreadSampler(pairs, batch_size, seed=1))
    assert sorted(order) == list(range(len(products)))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    whole = len(products) // batch_size
    for batch in batches[:whole] if whole > 1 else ():
        for product in {products[row] for row in batch}:
            # As few as can be: one, where there are as many batches as the product has rows.
            assert sum(products[row] == product for row in batch) <= -(-products.count(product) // whole)


def test_what_products_share_is_not_twice_in_a_batch():
    texts = [["a"], ["b"], ["c"], ["C!"], ["d"], ["e"], ["f"], ["g"]]
    pairs = pairs_of(range(8), groups=[0, 0, 2, 3, 4, 5, 6, 7], texts=texts)
    for epoch in range(10):
        pairs.set_epoch(epoch)
        order = list(SpreadSampler(pairs, 4))
        for batch in (set(order[:4]), set(order[4:])):
            assert not {0, 1} <= batch and not {2, 3} <= batch


def test_what_ties_the_catalogue_together_leaves_batches_to_chance():
    """A category and a brand as texts of their own: all rows are one group."""
    texts = [[f"text {i}", f"category {i % 8}", f"brand {i % 5}"] for i in range(320)]
    pairs = pairs_of([i // 2 for i in range(320)], texts=texts)
    batches = []
    for epoch in (0, 1):
        pairs.set_epoch(epoch)
        order = list(SpreadSampler(pairs, 16))
        batches.append({frozenset(order[i : i + 16]) for i in range(0, 320, 16)})
        assert all(len({pairs.products[row] for row in batch}) == 16 for batch in batches[-1])
    assert not batches[0] & batches[1]


def test_what_most_rows_share_is_spread_evenly():
    pairs = pairs_of(range(600), texts=[["T-shirt"] if i % 3 == 0 else [f"text {i}"] for i in range(600)])
    order = list(SpreadSampler(pairs, 60))
    shares = [sum(row % 3 == 0 for row in order[i : i + 60]) for i in range(0, 600, 60)]
    assert shares == [20] * 10


def test_orders_differ_by_epoch_and_seed_and_are_kept():
    pairs, orders = pairs_of(range(40)), []
    for seed in (0, 1):
        for epoch in (0, 1):
            pairs.set_epoch(epoch)
            orders.append(tuple(SpreadSampler(pairs, 8, seed)))
    assert len(set(orders)) == 4
    calls = []
    sampler = SpreadSampler(pairs, 8, embed=lambda: calls.append(1) or (torch.eye(40), torch.eye(40)))
    assert list(sampler) == list(sampler) and len(calls) == 1
    other = SpreadSampler(pairs, 8, embed=lambda: pytest.fail("the order is in the checkpoint"))
    other.load_state_dict(sampler.state_dict())
    assert list(other) == list(sampler)
    assert SpreadSampler(pairs, 8).state_dict() == {}


def test_hard_negatives_come_together():
    """Rows of two worlds, of which each is near to itself: batches are of one world, where chance would mix them."""
    generator = torch.Generator().manual_seed(0)
    world = torch.arange(64) % 2
    embeds = torch.nn.functional.one_hot(world, 8) + 0.1 * torch.randn(64, 8, generator=generator)
    embeds = torch.nn.functional.normalize(embeds, dim=1)
    # The nearest of all are two rows with one picture, and two with one text: these are no negatives.
    embeds[4], embeds[5] = embeds[2], embeds[3]
    groups, texts = [*range(64)], [[f"text {i}"] for i in range(64)]
    groups[4], texts[5] = groups[2], texts[3]
    pairs = pairs_of([*range(62), 0, 1], groups, texts)
    order = list(SpreadSampler(pairs, 8, embed=lambda: (embeds, embeds)))
    assert abs(order.index(2) - order.index(4)) > 1 and abs(order.index(3) - order.index(5)) > 1
    assert sorted(order) == list(range(64))
    same = torch.stack([world[order[i]] == world[order[i + 1]] for i in range(63)]).float().mean()
    assert same > 0.8
    for i in range(0, 64, 8):
        assert len({pairs.products[row] for row in order[i : i + 8]}) == 8


def test_hard_negatives_are_those_of_the_present_model(model, splits, processor, tmp_path, monkeypatch):
    options = {"batch_sampler": "hard_negatives", "num_train_epochs": 2, "eval_strategy": "no", "save_strategy": "no"}
    trainer = make_trainer(freeze_towers(model), splits, processor, tmp_path, **options)
    rows, asked = splits["train"], []
    texts = [each[0] for each in rows["texts"]]

    def embed():
        found = FusionMatchTrainer._embed_rows(trainer)
        expected = embed_images(model, processor, rows["image"]), embed_texts(model, processor, texts)
        for embeds, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(embeds, wanted, atol=1e-3, rtol=0)  # level tokens are kept in half precision
        asked.append((trainer.state.global_step, found[0]))
        return found

    monkeypatch.setattr(trainer._sampler, "embed", embed)
    trainer.train()
    steps = [step for step, _ in asked]
    assert steps == [0, trainer.state.max_steps // 2]
    assert not torch.allclose(asked[0][1], asked[1][1], atol=1e-3)


@pytest.mark.parametrize("sampler", ["no_duplicates", "hard_negatives"])
def test_training_stopped_within_an_epoch_goes_on_exactly(sampler, model, splits, processor, tmp_path):
    options = {"batch_sampler": sampler, "num_train_epochs": 3, "save_strategy": "steps", "eval_strategy": "no"}
    options |= {"save_steps": 1, "save_total_limit": 99}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = make_trainer(freeze_towers(model), splits, processor, tmp_path / "whole", **options)
    whole.train()
    ends = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    per_epoch = whole.state.max_steps // 3
    model.load_state_dict(state)
    again = make_trainer(model, splits, processor, tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{per_epoch + 1}"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, ends[name]), name


def test_a_name_that_is_none_is_refused(splits, processor, model, tmp_path):
    with pytest.raises(
        ValueError, match="`batch_sampler` must be one of batch_sampler, no_duplicates, hard_negatives"
    ):
        make_trainer(model, splits, processor, tmp_path, batch_sampler="harder")
