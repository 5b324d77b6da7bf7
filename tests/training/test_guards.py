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
import math

import pytest
import torch
from torch import nn

from fusionmatch import FusionMatchModel
from fusionmatch.training import lora_config
from fusionmatch.training.guards import TrainingGuard, TrainingStoppedError, alignment, effective_rank, uniformity
from fusionmatch.training.objective import BatchPairs

from ..core.tiny import healthy_model
from .test_trainer import make_trainer


STEPS = {"max_steps": 60, "eval_strategy": "no", "save_strategy": "no"}


class TestMeasures:
    def test_effective_rank(self):
        basis = torch.eye(6)
        assert effective_rank(basis) == pytest.approx(6)
        assert effective_rank(basis[:1].expand(6, -1)) == pytest.approx(1, abs=1e-3)
        assert effective_rank(torch.cat([basis[:2]] * 3)) == pytest.approx(2, abs=1e-3)

    def test_a_device_without_double_precision(self, monkeypatch):
        order = []
        for name in ("cpu", "double"):
            own = getattr(torch.Tensor, name)
            monkeypatch.setattr(torch.Tensor, name, lambda self, name=name, own=own: order.append(name) or own(self))
        effective_rank(torch.eye(3))
        assert order == ["cpu", "double"]

    def test_alignment(self):
        texts, images = torch.eye(3), torch.eye(3)
        assert alignment(texts, images, torch.eye(3, dtype=torch.bool)) == pytest.approx(0)
        assert alignment(texts, -images, torch.eye(3, dtype=torch.bool)) == pytest.approx(4)
        assert alignment(texts, images.roll(1, 0), torch.eye(3, dtype=torch.bool)) == pytest.approx(2)

    def test_uniformity(self):
        assert uniformity(torch.eye(1).expand(4, 1)) == pytest.approx(0)
        # Two opposite points are 2 apart: exp(-2 * 4).
        assert uniformity(torch.tensor([[1.0], [-1.0]])) == pytest.approx(-8)


def feed(guard, losses, chance=3.0, scale=20.0, embeds=None, growth=1.0):
    embeds = torch.eye(8) if embeds is None else embeds
    for loss in losses:
        guard.check(loss, chance, scale, 100.0, embeds, embeds, 1e-3, growth, guard._steps + 1)


class TestSigns:
    def test_divergence(self):
        with pytest.raises(TrainingStoppedError, match=r"learning rate .* is too high"):
            feed(TrainingGuard(), [3.0] * 3 + [9.0] * 20)
        # One wild batch is none.
        feed(TrainingGuard(), ([3.0] * 8 + [9.0]) * 5)

    def test_weights_that_grow(self):
        with pytest.raises(TrainingStoppedError, match="grown 11 times"):
            feed(TrainingGuard(), [3.0], growth=11.0)

    @pytest.mark.parametrize("scale", [2e3, 0.5])
    def test_scale(self, scale):
        with pytest.raises(TrainingStoppedError, match="scale of the similarity"):
            feed(TrainingGuard(), [2.5] * 20, scale=scale)

    def test_collapse(self):
        with pytest.raises(TrainingStoppedError, match="embeddings of pictures have collapsed"):
            feed(TrainingGuard(), [2.5] * 50, embeds=torch.ones(8, 4) / 2)

    def test_collapse_into_a_cone_from_above_the_chance_level(self):
        """As on the base of another corpus at a rate too high: the loss falls, but to the chance level."""
        narrow = nn.functional.normalize(torch.ones(8, 8) + 0.1 * torch.eye(8), dim=-1)
        assert effective_rank(narrow) > 1.5
        guard = TrainingGuard()
        feed(guard, [4.5, 4.0, 3.5])
        with pytest.raises(TrainingStoppedError, match="embeddings of pictures have collapsed"):
            feed(guard, [3.0] * 40, embeds=narrow)
        # One that it passes through is none; below that level it is a way to learn; and embeddings that stay spread
        # are on the way down to it.
        guard = TrainingGuard()
        feed(guard, [4.5, 4.0, 3.5])
        feed(guard, [3.0] * 35, embeds=narrow)
        feed(guard, [2.5] * 60, embeds=narrow)
        feed(TrainingGuard(), [4.5 - 0.03 * step for step in range(60)])

    def test_a_loss_that_trains_no_embeddings(self):
        def feed_alone(losses, chance):
            guard = TrainingGuard()
            for step, loss in enumerate(losses):
                guard.check(loss, chance, 20.0, 100.0, None, None, 1e-3, 1.0, step + 1)

        with pytest.raises(TrainingStoppedError, match=r"too high: .* \(chance level 0.69, first 0.5\)"):
            feed_alone([0.5] + [1.2] * 20, 0.69)
        with pytest.raises(TrainingStoppedError, match=r"too high: .* \(first 0.5\)"):
            feed_alone([0.5] + [1.2] * 20, None)
        feed_alone([0.6] * 200, 0.69)  # a stage that begins with what the similarities say may gain nothing on them

    def test_flat(self):
        with pytest.raises(TrainingStoppedError, match="Nothing is learned"):
            feed(TrainingGuard(), [3.0] * 50)
        # On an aligned base a loss that hardly moves is far below chance.
        feed(TrainingGuard(), [0.4] * 200)


# Twenty on a real base: `benchmarks/presets.py`, which ends where a run is stopped.
@pytest.mark.parametrize("seed", range(2))
def test_a_healthy_training_goes_on(seed, splits, processor, tmp_path):
    trainer = make_trainer(healthy_model(seed), splits, processor, tmp_path, seed=seed, learning_rate=1e-3, **STEPS)
    trainer.train()
    assert trainer.state.global_step == 60


@pytest.mark.parametrize(
    ("sabotage", "settings", "cause"),
    [
        (None, {"learning_rate": 3.0}, "too high"),
        (None, {"learning_rate": 0.1}, "have collapsed.* and lower `--learning_rate`"),
        ("lora", {"learning_rate": 0.03}, "have collapsed.* and lower `--learning_rate`"),
        ("idle", {"learning_rate": 1e-9}, "Nothing is learned"),
        ("collapse", {"learning_rate": 1e-5}, "have collapsed"),
        (0.1, {}, "scale of the similarity has run away to 0.1"),
        (5e3, {}, r"scale of the similarity has run away to 4.*ceiling 100"),
    ],
)
def test_a_hopeless_training_is_stopped(sabotage, settings, cause, splits, processor, tmp_path):
    model = healthy_model()
    if sabotage == "collapse":
        nn.init.zeros_(model.text_head.fc2.weight)
        nn.init.ones_(model.text_head.fc2.bias)
        nn.init.zeros_(model.text_fusion.residual.gate)
    if sabotage == "idle":
        model.similarity.logit_scale.data.fill_(math.log(1.5))
    if isinstance(sabotage, float):
        model.similarity.logit_scale.data.fill_(math.log(sabotage))
    if sabotage == "lora":
        model.save_pretrained(tmp_path / "base")
        model = FusionMatchModel.from_pretrained(tmp_path / "base")
        settings = settings | {"peft_config": lora_config(model, r=4)}
    trainer = make_trainer(model, splits, processor, tmp_path, **STEPS, **settings)
    with pytest.raises(TrainingStoppedError, match=cause):
        trainer.train()
    assert trainer.state.global_step <= 50


def test_the_chance_level_is_in_the_log_and_beside_the_loss(splits, processor, tmp_path, capsys):
    settings = STEPS | {"max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 4, "disable_tqdm": False}
    settings |= {"batch_sampler": "no_duplicates", "texts_per_image": 1}
    trainer = make_trainer(healthy_model(), splits, processor, tmp_path, learning_rate=1e-3, **settings)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    # Four products with one text and one picture each.
    assert [entry["chance_fused"] for entry in logs] == pytest.approx([math.log(4)] * 3)
    assert {"alignment", "uniformity_texts", "uniformity_images"} <= set(logs[0])
    assert f"loss {logs[-1]['loss']:.3f} (by chance 1.386)" in capsys.readouterr().err

    # Of 5 texts and 4 pictures all similarities are 0: each positive has an even share of its row or column.
    positives = torch.zeros(5, 4).bool()
    positives[[0, 1, 2, 3, 4], [0, 0, 1, 2, 3]] = True
    ignored = torch.zeros(5, 4).bool()
    ignored[0, 3] = True
    level = trainer.objective.chance_level(trainer.model, BatchPairs(positives, positives, ignored, ignored))
    by_text, by_image = (math.log(3) + 4 * math.log(4)) / 5, (3 * math.log(5) + math.log(4)) / 4
    assert level == pytest.approx((by_text + by_image) / 2)


def test_steps_of_several_batches_are_counted_once(splits, processor, tmp_path):
    """And those before a checkpoint count in the message."""
    settings = STEPS | {"max_steps": 6, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 4}
    trainer = make_trainer(healthy_model(), splits, processor, tmp_path, learning_rate=1e-3, **settings)
    seen = []
    trainer._guard.check = lambda **batch: seen.append(batch["step"])
    trainer.train()
    assert seen == [1, 2, 3, 4, 5, 6]
    with pytest.raises(TrainingStoppedError, match="at step 207 the loss"):
        TrainingGuard().check(3.0, 3.0, 20.0, 100.0, torch.eye(8), torch.eye(8), 1e-3, 11.0, 207)


def test_the_warm_up_of_the_triplet_loss_is_no_start_to_compare_with(splits, processor, tmp_path):
    """It is another loss, and lower than the one that follows."""
    settings = STEPS | {"max_steps": 6, "contrastive_loss": "triplet", "triplet_warmup_steps": 4}
    trainer = make_trainer(healthy_model(0), splits, processor, tmp_path, learning_rate=1e-3, **settings)
    seen = []
    trainer._guard.check = lambda **batch: seen.append(batch["loss"])
    trainer.train()
    assert len(seen) == 2
