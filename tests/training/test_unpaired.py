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
"""What a moving average of the model finds among unpaired pictures and texts."""

import json
import math

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import normalize

from fusionmatch.catalogue import hide_pairs
from fusionmatch.commands import main
from fusionmatch.evaluation.retrieval import embed_images, embed_texts
from fusionmatch.training import FusionMatchTrainer
from fusionmatch.training import unpaired as module
from fusionmatch.training.unpaired import MeanTeacher, PartlyPairedDataset, PseudoPairSampler, mutual_nearest

from ..core.tiny import tiny_model, tiny_processor
from .test_trainer import arguments, freeze_towers


def test_nearest_to_each_other_in_closed_form():
    """Texts 0 and 2 want picture 0, which wants text 0; text 1 and picture 1 want each other; nobody picture 2."""
    images = torch.eye(3)
    texts = normalize(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.8, 0.6, 0.0]]), dim=1)
    image, text, confidence = mutual_nearest(images, texts, scale=2.0)
    assert list(zip(image.tolist(), text.tolist(), strict=True)) == [(0, 0), (1, 1)]
    e = math.exp
    by_text = [e(2) / (e(2) + 2)] * 2
    by_image = [e(2) / (e(2) + 1 + e(1.6)), e(2) / (1 + e(2) + e(1.2))]
    assert confidence.tolist() == pytest.approx([min(pair) for pair in zip(by_text, by_image, strict=True)])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.integers(0, 99))
def test_in_parts_as_in_one(images, texts, at_a_time, seed):
    generator = torch.Generator().manual_seed(seed)
    pictures, captions = (normalize(torch.randn(n, 4, generator=generator).double(), dim=1) for n in (images, texts))
    scores = 5.0 * pictures @ captions.t()
    both = torch.minimum(scores.softmax(dim=1), scores.softmax(dim=0))
    expected = [(i, t) for t in range(texts) for i in [scores[:, t].argmax().item()] if scores[i].argmax().item() == t]
    kept, module._SCORES = module._SCORES, at_a_time
    try:
        image, text, confidence = mutual_nearest(pictures, captions, 5.0)
    finally:
        module._SCORES = kept
    assert list(zip(image.tolist(), text.tolist(), strict=True)) == expected
    assert confidence.tolist() == pytest.approx([both[pair].item() for pair in expected])


def test_the_teacher_is_the_moving_average():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    teacher = MeanTeacher(model, decay=0.9)
    state = type("State", (), {})()
    expected = 0.0
    for step in range(1, 200):
        model.weight.data.fill_(float(step))
        state.global_step = step
        teacher.on_step_end(None, state, None)
        decay = min(0.9, step / (step + 10))
        expected = decay * expected + (1 - decay) * step
    with teacher.in_place():
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == 199.0
    with pytest.raises(RuntimeError), teacher.in_place():
        raise RuntimeError
    assert model.weight.item() == 199.0


def partly(labelled=3, apart=5, texts=("x", "y", "z")):
    count = labelled + apart
    rows = {
        "image": [0] * count,
        "texts": [[f"text {i}"] if i < labelled else [] for i in range(count)],
        "product": [f"P{i}" for i in range(count)],
        "picture_group": [str(i) for i in range(count)],
    }
    features = {"texts": datasets.List(datasets.Value("string"))}
    dataset = datasets.Dataset.from_dict(rows).cast_column("texts", features["texts"])
    found = {"text": list(texts), "products": [[f"P{labelled + i}"] for i in range(len(texts))]}
    return PartlyPairedDataset(dataset, datasets.Dataset.from_dict(found))


def sampler_of(pairs, confidence, start=0.5, threshold=0.5, share=0.5, progress=lambda: 1.0, batch_size=None):
    found = torch.tensor([3, 4, 5]), torch.tensor([0, 1, 0]), torch.tensor(confidence)
    return PseudoPairSampler(pairs, lambda: found, progress, start, threshold, share, batch_size=batch_size)


def test_what_the_teacher_is_sure_of_is_in_the_epoch():
    pairs = partly()
    order = list(sampler_of(pairs, [0.9, 0.5, 0.4]))
    assert len(order) == len(pairs) == 8
    assert sorted(row for row in order if row >= 3) == [3, 4]
    assert {order.count(row) for row in range(3)} == {2}
    assert pairs.assigned.tolist() == [-1, -1, -1, 0, 1, -1, -1, -1]
    item = pairs[4]
    assert item["texts"] == ["y"] and pairs.all_texts[item["text_indices"][0]] == "y"
    assert len({pairs[row]["product"] for row in (0, 1, 2, 3, 4)}) == 5
    with pytest.raises(IndexError, match="no text was assigned"):
        pairs[5]


def test_precision_is_of_what_was_assigned():
    pairs = partly()
    assert pairs.precision is None
    list(sampler_of(pairs, [0.9, 0.9, 0.9]))  # texts 0 and 1 are those of rows 3 and 4, and text 0 is not row 5's
    assert pairs.precision == pytest.approx(2 / 3)


@pytest.mark.parametrize("options", [{"progress": lambda: 0.4}, {"start": 1.0, "progress": lambda: 0.99}])
def test_before_its_time_the_known_pairs_are_alone(options):
    pairs = partly()
    assert max(sampler_of(pairs, [1.0, 1.0, 1.0], **options)) == 2
    assert (pairs.assigned == -1).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.floats(0, 1))
def test_no_more_pseudo_pairs_than_their_share(epoch, share):
    pairs = partly()
    pairs.set_epoch(epoch)
    order = list(sampler_of(pairs, [1.0, 1.0, 1.0], share=share))
    assert len(order) == 8 and sum(row >= 3 for row in order) == min(3, int(8 * share))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(3, 9), st.integers(0, 40), st.integers(2, 8))
def test_each_product_is_spread_over_the_batches(epoch, labelled, apart, batch_size):
    pairs = partly(labelled, max(3, apart), texts=("Text 1!", "y", "z"))
    pairs.set_epoch(epoch)
    found = torch.arange(labelled, labelled + 3), torch.arange(3), torch.ones(3)
    samplers = [
        PseudoPairSampler(pairs, lambda: found, lambda: 1.0, 0.5, 0.5, 1.0, batch_size=b) for b in (None, batch_size)
    ]
    at_random, order = (list(each) for each in samplers)
    assert sorted(order) == sorted(at_random)
    products = [pairs[row]["product"] for row in order]
    assert products[order.index(labelled)] == pairs[1]["product"]  # the same text
    whole = len(order) // batch_size
    for first in range(0, whole * batch_size, batch_size) if whole > 1 else ():
        batch = products[first : first + batch_size]
        assert all(batch.count(product) <= -(-products.count(product) // whole) for product in batch)


def test_a_text_that_a_known_product_has_is_of_that_product():
    pairs = partly(texts=("Text 1!", "y", "z"))
    list(sampler_of(pairs, [1.0, 1.0, 1.0]))
    assert pairs[3]["product"] == pairs[1]["product"] != pairs[4]["product"]


def test_what_cannot_be_learnt_from():
    with pytest.raises(ValueError, match="0 unpaired pictures and 3 unpaired texts"):
        partly(apart=0)
    with pytest.raises(ValueError, match="5 unpaired pictures and 0 unpaired texts"):
        partly(texts=())
    with pytest.raises(ValueError, match="fewer than two products"):
        partly(labelled=1)


def start(model, splits, processor, folder, **settings):
    train, texts = hide_pairs(splits["train"], 20)
    options = {"num_train_epochs": 4, "pseudo_pair_start": 0.25, "pseudo_pair_threshold": 0.0, "logging_steps": 1}
    return FusionMatchTrainer(
        freeze_towers(model),
        arguments(folder, **(options | settings)),
        train_dataset=train,
        eval_dataset=splits["validation"],
        processing_class=processor,
        unpaired_texts=texts,
    )


@pytest.mark.parametrize("cached", [True, False])
def test_the_teacher_names_the_rows_of_the_pictures(cached, model, splits, processor, tmp_path, monkeypatch):
    trainer = start(model, splits, processor, tmp_path, cache_tower_features=cached)
    pairs = trainer.train_dataset
    pictures = splits["train"].select(pairs.unlabelled)["image"]
    found = trainer._embed_rows()
    torch.testing.assert_close(found[0], embed_images(model, processor, pictures))
    torch.testing.assert_close(found[1], embed_texts(model, processor, pairs.unpaired_texts))
    order = torch.randperm(len(pairs.unlabelled), generator=torch.Generator().manual_seed(0))
    alike = torch.eye(len(order)), torch.eye(len(order))[order]
    monkeypatch.setattr(trainer, "_embed_rows", lambda: alike)
    rows, texts, _ = trainer._teach()
    assert rows.tolist() == [pairs.unlabelled[place] for place in order] and texts.tolist() == list(range(len(order)))


def test_it_is_the_average_that_teaches(model, splits, processor, tmp_path, monkeypatch):
    trainer = start(model, splits, processor, tmp_path)
    at_first = trainer._embed_rows()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    now, seen = trainer._embed_rows(), []
    monkeypatch.setattr(trainer, "_embed_rows", lambda: seen.append(type(trainer)._embed_rows(trainer)) or seen[-1])
    trainer._teach()
    for average, before, student in zip(seen[0], at_first, now, strict=True):
        torch.testing.assert_close(average, before)
        assert not torch.allclose(average, student, atol=0.1)


def test_the_log_says_how_many_pairs_were_found_and_are_right(model, splits, processor, tmp_path):
    trainer = start(model, splits, processor, tmp_path, eval_strategy="no", save_strategy="no")
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "pseudo_pairs" in entry]
    assert history[0]["pseudo_pairs"] == 0 and "pseudo_pair_precision" not in history[0]
    pairs = trainer.train_dataset
    assert history[-1]["pseudo_pairs"] == (pairs.assigned >= 0).sum() > 0
    assert history[-1]["pseudo_pair_precision"] == pytest.approx(pairs.precision)


def test_a_training_in_which_the_teacher_would_never_be_asked_is_refused(model, splits, processor, tmp_path):
    options = {"num_train_epochs": 2, "eval_strategy": "no", "save_strategy": "no"}
    with pytest.raises(ValueError, match=r"from 60% of the training on .* the last of the 2 epochs begins at 50%"):
        start(model, splits, processor, tmp_path, pseudo_pair_start=0.6, **options).train()
    trainer = start(model, splits, processor, tmp_path, pseudo_pair_start=0.5, **options)
    trainer.train()
    assert (trainer.train_dataset.assigned >= 0).any()


def test_stopped_within_an_epoch_it_goes_on_exactly(model, splits, processor, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 99, "eval_strategy": "no"}
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = start(model, splits, processor, tmp_path / "whole", **options)
    whole.train()
    ends = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    middle = whole.state.max_steps // 2 + 1
    assert middle % (whole.state.max_steps // 4)
    model.load_state_dict(state)
    again = start(model, splits, processor, tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{middle}"))
    assert (again.train_dataset.assigned >= 0).any()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, ends[name]), name


def test_workers_see_the_batches_that_are_seen_without(splits, processor, tmp_path, monkeypatch):
    """Texts and views that rotate with the epoch, and the pairs that the teacher found at the beginning of one."""

    def batches(**options):
        model, seen = tiny_model(gate_init_value=0.0), []
        options |= {"num_train_epochs": 2, "image_views": 2, "cache_tower_features": False, "eval_strategy": "no"}
        trainer = start(model, splits, processor, tmp_path / str(len(options)), save_strategy="no", **options)
        compute_loss = trainer.compute_loss

        def look(model, inputs, *args, **kwargs):
            inputs = dict(inputs)
            seen.append(inputs | {"pixel_values": inputs["pixel_values"].pixel_bytes})
            return compute_loss(model, inputs, *args, **kwargs)

        monkeypatch.setattr(trainer, "compute_loss", look)
        trainer.train()
        assert (trainer.train_dataset.assigned >= 0).any()
        return seen

    alone = batches()
    workers = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4}
    for found in (batches(**workers), batches(**workers, dataloader_persistent_workers=True)):
        for ours, theirs in zip(alone, found, strict=True):
            assert ours.keys() == theirs.keys()
            for name, tensor in ours.items():
                assert torch.equal(tensor, theirs[name]), name


def test_another_sampler_is_refused(model, splits, processor, tmp_path):
    with pytest.raises(ValueError, match="`batch_sampler`"):
        start(model, splits, processor, tmp_path, batch_sampler="hard_negatives")


@pytest.mark.parametrize("name", ["pseudo_pair_threshold", "pseudo_pair_share", "pseudo_pair_start", "teacher_decay"])
def test_shares_are_shares(name, tmp_path):
    with pytest.raises(ValueError, match=rf"`{name}` must be a share in \[0, 1\], got 1.5"):
        arguments(tmp_path, **{name: 1.5})


@pytest.fixture
def command(shop, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_processor().save_pretrained(tmp_path / "base")
    files = {"model_name_or_path": tmp_path / "base", "catalogue": shop, "output_dir": tmp_path / "run"}
    options = files | {"num_train_epochs": 2, "per_device_train_batch_size": 16, "disable_tqdm": "True"}
    return ["train", "--use_cpu", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def test_the_command_takes_pairs_apart(command, splits, tmp_path, capsys):
    assert main([*command, "--labels", "20"]) == 0
    assert f"{len(splits['train']) - 20} pictures without texts" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["labelled_pictures"] == 20


def test_the_command_takes_a_folder_and_a_file(command, splits, shop, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    for number in range(3):
        Image.new("RGB", (48, 48), (80 * number, 9, 9)).save(tmp_path / "new" / f"{number}.png")
    (tmp_path / "texts.txt").write_text("a red thing\na black thing\n")
    unpaired = ["--unpaired_images", str(tmp_path / "new"), "--unpaired_texts", str(tmp_path / "texts.txt")]
    assert main([*command, *unpaired, "--pseudo_pair_threshold", "1"]) == 0
    shown = capsys.readouterr().out
    assert "3 pictures without texts; 2 texts without pictures" in shown
    assert "Texts found for 0 of 3 pictures in the last epoch: of none was the teacher sure enough (1)." in shown
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["labelled_pictures"] == len(splits["train"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--unpaired_images", "somewhere"], "so name both"),
        (["--labels", "20", "--unpaired_images", "a", "--unpaired_texts", "b"], "takes pairs of the catalogue apart"),
        (["--labels", "20000"], "between 2 and the"),
        (["--unpaired_images", "nowhere", "--unpaired_texts", "b"], "nowhere"),
    ],
)
def test_the_command_refuses(options, words, command, capsys):
    assert main([*command, *options]) == 1
    assert words in capsys.readouterr().err
