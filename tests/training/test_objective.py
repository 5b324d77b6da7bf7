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
"""Components of the loss: which there are, what they compare, and that their weights go on where they stopped."""

import json
import math
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from pytest import approx

from fusionmatch import FusionMatchModel, FusionMatchTrainer
from fusionmatch.catalogue import build_concepts
from fusionmatch.evaluation.concepts import evaluate_concepts
from fusionmatch.losses_fusionmatch import (
    CONTRASTIVE_LOSSES,
    ConceptDivergenceLoss,
    MatchingLoss,
    concept_divergence,
    infonce_loss,
)
from fusionmatch.training import lora_config
from fusionmatch.training.annealing import annealing_factor
from fusionmatch.training.concepts import attach_concepts
from fusionmatch.training.objective import BatchPairs, MatchingObjective
from fusionmatch.training.trainer import WEIGHTING_RATE

from ..core.tiny import healthy_model, perturb, tiny_concepts, tiny_inputs, tiny_model
from .test_trainer import arguments, freeze_towers, losses, make_trainer


ALL = ["fused", "instance", "consensus", "concept"]
PRODUCTS = torch.tensor([7, 7, 9])


@pytest.fixture
def with_concepts():
    model = tiny_concepts(tiny_model())
    perturb(model)
    return model


def test_every_component_by_hand(with_concepts, tmp_path):
    model = with_concepts
    objective = MatchingObjective.from_arguments(arguments(tmp_path, loss_components=ALL), model)
    outputs = model(**tiny_inputs())
    found = objective.losses(model, outputs, BatchPairs.gather(PRODUCTS, PRODUCTS))
    positives = PRODUCTS[:, None] == PRODUCTS[None, :]
    texts, images = outputs.text_model_output, outputs.vision_model_output
    expected = {
        "fused": infonce_loss(outputs.logits_per_text, positives),
        "instance": infonce_loss(model.similarity(texts.instance_embeds, images.instance_embeds), positives),
        "consensus": infonce_loss(model.similarity(texts.consensus_embeds, images.consensus_embeds), positives),
        "concept": concept_divergence(texts.concept_log_probs, images.concept_log_probs, positives),
    }
    assert list(found) == ALL
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, atol=1e-6, rtol=1e-6)
    assert len({loss.item() for loss in found.values()}) == 4


@pytest.mark.parametrize("kind", sorted(CONTRASTIVE_LOSSES))
def test_the_score_of_what_products_share_has_no_gradient(kind, with_concepts, tmp_path):
    settings = {"loss_components": ["fused", "instance", "consensus"], "contrastive_loss": kind}
    objective = MatchingObjective.from_arguments(arguments(tmp_path, **settings), with_concepts)
    tables = []

    def keep(_, args):
        for scores in args[:2]:
            scores.retain_grad()
            tables.append(scores)

    objective.contrastive.register_forward_pre_hook(keep)
    positives, ignored = PRODUCTS[:, None] == PRODUCTS[None, :], torch.zeros(3, 3).bool()
    ignored[0, 2] = ignored[2, 1] = True
    found = objective.losses(
        with_concepts, with_concepts(**tiny_inputs()), BatchPairs(positives, positives, ignored, ignored)
    )
    sum(found.values()).backward()
    gradients = [scores.grad for scores in tables if scores.grad is not None]
    assert len(gradients) >= len(settings["loss_components"])
    for gradient in gradients:
        assert (gradient[ignored] == 0).all() and gradient[~ignored].any()


def test_without_fused_the_gates_stay_and_must_stand_open(splits, processor, tmp_path):
    model = tiny_model(gate_init_value=0.5)
    own = {"loss_components": ["instance"], "learning_rate": 1e-2}
    trainer = make_trainer(model, splits, processor, tmp_path, **own)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.train()
    for name in ("vision_fusion.residual.gate", "text_fusion.residual.gate"):
        assert torch.equal(model.state_dict()[name], before[name])
    name = "vision_fusion.residual.projection.weight"
    assert not torch.equal(model.state_dict()[name], before[name])
    with pytest.raises(ValueError, match=r"they are at 0.*gate_init_value"):
        MatchingObjective.from_arguments(arguments(tmp_path, **own), tiny_model(gate_init_value=0.0))


@pytest.mark.parametrize("kind", ["infonce", "sigmoid", "triplet", "complementary"])
def test_every_kind_of_loss_trains(kind, splits, processor, tmp_path):
    settings = {"contrastive_loss": kind, "triplet_warmup_steps": 3, "num_train_epochs": 24, "learning_rate": 1e-3}
    settings |= {"eval_strategy": "no", "save_strategy": "no"}
    model = healthy_model(gate_init_value=0.0, logit_bias_init_value=-5.0 if kind == "sigmoid" else None)
    trainer = make_trainer(freeze_towers(model), splits, processor, tmp_path, **settings)
    trainer.train()
    assert trainer.objective.contrastive.name == kind
    history = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert len(history) == trainer.state.global_step
    logs = [entry for entry in trainer.state.log_history if "loss" in entry][3:]  # triplet begins with another loss
    values = [entry["loss"] / entry["chance_fused"] for entry in logs]
    # Embeddings that are all the same would be below their start too; the guard would have stopped such a training.
    assert sum(values[-6:]) < 0.9 * sum(values[:6])


def test_what_the_model_lacks_is_refused(model, tmp_path):
    for name in ("consensus", "concept"):
        with pytest.raises(ValueError, match=f"`{name}` needs a model with concepts"):
            MatchingObjective.from_arguments(arguments(tmp_path, loss_components=["fused", name]), model)
    plain = tiny_model(vision_feature_levels=[], text_feature_levels=[])
    with pytest.raises(ValueError, match="`instance` needs a model with feature levels"):
        MatchingObjective.from_arguments(arguments(tmp_path, loss_components=["instance"]), plain)


@pytest.mark.parametrize(
    ("loss", "settings", "source"),
    [
        (CONTRASTIVE_LOSSES["infonce"], {}, "Radford et al., Learning Transferable Visual Models .* arXiv 2103.00020"),
        (CONTRASTIVE_LOSSES["sigmoid"], {}, "Zhai et al., Sigmoid Loss for Language Image .* arXiv 2303.15343"),
        (CONTRASTIVE_LOSSES["triplet"], {"margin": 0.35, "warmup_steps": 7}, "Faghri et al., .* arXiv 1707.05612"),
        (CONTRASTIVE_LOSSES["complementary"], {}, "Hu et al., .* Partially Mismatched Pairs, IEEE TPAMI 2023"),
        (ConceptDivergenceLoss, {"symmetric": True, "label_share": 0.6}, "Wang et al., Consensus-.* arXiv 2007.08883"),
        (MatchingLoss, {}, "Li et al., Align before Fuse, arXiv 2107.07651"),
    ],
)
def test_a_loss_says_its_settings_and_its_source(loss: type[torch.nn.Module], settings: dict, source: str) -> None:
    """Against what was given, which is never a default: a loss that forgot it would agree with itself."""
    assert loss(**settings).get_config_dict() == settings
    assert re.fullmatch(source, loss.citation)
    assert all(getattr(loss(**settings), name) == value != getattr(loss(), name) for name, value in settings.items())


def test_arguments_reach_the_losses(with_concepts: FusionMatchModel, tmp_path: Path) -> None:
    settings = {"contrastive_loss": "triplet", "triplet_margin": 0.35, "triplet_warmup_steps": 7}
    args = arguments(tmp_path, loss_components=ALL, symmetric_concepts=True, **settings)
    objective = MatchingObjective.from_arguments(args, with_concepts)
    assert objective.contrastive.name == "triplet"
    assert objective.contrastive.get_config_dict() == {"margin": 0.35, "warmup_steps": 7}
    assert objective.divergence.get_config_dict() == {"symmetric": True, "label_share": 0.35}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_components": ["fusion"]}, "fusion"),
        ({"loss_components": []}, "`loss_components`"),
        ({"contrastive_loss": "hinge"}, "hinge"),
        ({"loss_weighting": "best"}, "best"),
        ({"lr_floor": 1.0}, "`lr_floor`"),
        ({"lr_cycles": 0}, "`lr_cycles`"),
    ],
)
def test_unknown_settings_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


def test_every_step_and_every_log_has_losses_and_weights(with_concepts, splits, processor, tmp_path):
    settings = {"loss_components": ALL, "loss_weighting": "inverse", "logging_steps": 2}
    trainer = make_trainer(with_concepts, splits, processor, tmp_path, **settings)
    trainer.train()
    history = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == list(range(trainer.state.global_step))
    for row in history:
        assert sum(row[f"weight_{name}"] for name in ALL) == approx(len(ALL))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0]["loss_concept"] == approx((history[0]["concept"] + history[1]["concept"]) / 2)
    assert logged[0]["loss"] == approx(
        sum(row[name] * row[f"weight_{name}"] for row in history[:2] for name in ALL) / 2, rel=1e-4
    )


@pytest.mark.parametrize("scheme", ["relative", "relative_first", "uncertainty", "dwa", "cov", "random"])
def test_weights_go_on_where_they_stopped(scheme: str, splits: Any, processor: Any, tmp_path: Path) -> None:
    """Killed in the middle of an epoch and resumed: the same losses and weights, bit for bit, as without a stop."""
    settings = {"loss_components": ALL, "loss_weighting": scheme, "num_train_epochs": 4, "eval_strategy": "no"}
    settings |= {"save_strategy": "steps", "save_steps": 7}

    def start(folder: Path, seed: int) -> FusionMatchTrainer:
        model = tiny_concepts(tiny_model(seed=seed))
        trainer = make_trainer(model, splits, processor, folder, **settings)
        # Of dwa, whose weights are 1 in the first two windows: the stop is after these, in the middle of the third.
        trainer.objective.weighting.window = 3
        return trainer

    whole = start(tmp_path / "whole", 0)
    whole.train()
    resumed = start(tmp_path / "resumed", 1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-7"))
    history = [(tmp_path / name / "losses.jsonl").read_text().splitlines() for name in ("whole", "resumed")]
    assert len(history[0]) == 12 and history[1] == history[0][7:]
    # Weights that stay at 1 would go on with any state.
    for row in map(json.loads, history[1]):
        assert max(abs(row[f"weight_{name}"] - 1) for name in ALL) > 1e-4
    states = [trainer.objective.weighting.state_dict() for trainer in (whole, resumed)]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_resumed_history_has_every_step_once(with_concepts, splits, processor, tmp_path):
    def go(epochs, resume=None):
        settings = {"num_train_epochs": epochs, "load_best_model_at_end": False}
        trainer = make_trainer(with_concepts, splits, processor, tmp_path, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state.global_step

    steps = go(2)
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"step": 9999}\n')  # done after the last checkpoint, then killed
    total = go(3, resume=str(tmp_path / f"checkpoint-{steps}"))
    history = [json.loads(line)["step"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert history == list(range(total))


def test_a_longer_run_goes_on_with_the_rate_of_its_own_schedule(model, splits, processor, tmp_path):
    """After two epochs of two the rate is 0; after two of four it is that of the half-way point."""

    def go(epochs, resume=None):
        settings = {"num_train_epochs": epochs, "load_best_model_at_end": False, "warmup_steps": 0}
        trainer = make_trainer(model, splits, processor, tmp_path, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]

    steps = len(go(2))
    rates = go(4, resume=str(tmp_path / f"checkpoint-{steps}"))
    whole = [1e-2 * annealing_factor(step, 2 * steps) for step in range(2 * steps)]
    assert rates[steps:] == approx(whole[steps:])


def test_learned_weights_are_in_the_optimizer_without_decay(with_concepts, splits, processor, tmp_path):
    settings = {"loss_components": ALL, "loss_weighting": "uncertainty", "weight_decay": 0.1}
    trainer = make_trainer(with_concepts, splits, processor, tmp_path, **settings)
    groups = trainer.create_optimizer().param_groups
    (group,) = [g for g in groups if any(p is trainer.objective.weighting.log_variance for p in g["params"])]
    assert (group["weight_decay"], group["lr"]) == (0, WEIGHTING_RATE)


def test_a_broken_component_is_named_with_the_remedy(with_concepts, splits, processor, tmp_path):
    with torch.no_grad():
        with_concepts.text_consensus.query.weight.fill_(torch.nan)
    # The feature levels alone do not go through the concepts: the first component is whole, and not the one to name.
    components = ["instance", "consensus", "fused", "concept"]
    message = (
        r"component `consensus` of the loss is nan\. That was at step 1\..* Lower the learning rate \(now 0\.01\)"
    )
    with pytest.raises(FloatingPointError, match=message):
        make_trainer(with_concepts, splits, processor, tmp_path, loss_components=components).train()


def test_schedule_with_floor_and_restarts(model, splits, processor, tmp_path):
    settings = {"lr_floor": 0.25, "lr_cycles": 2, "warmup_steps": 0, "num_train_epochs": 4}
    trainer = make_trainer(model, splits, processor, tmp_path, **settings)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    half = len(rates) // 2
    assert rates[:half] == approx(rates[half:])
    assert rates[half] == approx(1e-2) and min(rates) > 0.25e-2


def test_the_schedule_counts_optimizer_steps_where_gradients_accumulate(model, splits, processor, tmp_path):
    settings = {"gradient_accumulation_steps": 2, "warmup_steps": 2, "num_train_epochs": 3, "lr_floor": 0.1}
    trainer = make_trainer(model, splits, processor, tmp_path, **settings)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    batches = len(splits["train"]) // 16
    steps = 3 * math.ceil(batches / 2)
    assert batches % 2 == 1 and batches > 1  # the last batch of an epoch is a step of its own
    assert rates == approx([1e-2 * annealing_factor(step, steps, 2, 0.1) for step in range(steps)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss_weights": {"fused": 3.0}}, "`loss_weights` are for `loss_weighting` fixed, which is 'unit'"),
        ({"lr_cycles": 2, "lr_scheduler_type": "linear"}, "for `lr_scheduler_type` cosine, which is 'linear'"),
        ({"lr_floor": 0.1, "lr_scheduler_type": "constant"}, "for `lr_scheduler_type` cosine"),
    ],
)
def test_a_setting_that_would_be_ignored_is_an_error(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **wrong)


def test_the_concept_loss_alone_has_no_chance_level_of_another(with_concepts, splits, processor, tmp_path, caplog):
    trainer = make_trainer(with_concepts, splits, processor, tmp_path, loss_components=["concept"])
    trainer.train()
    assert not any("chance_concept" in entry for entry in trainer.state.log_history)


def test_the_sigmoid_loss_without_a_bias_says_so(model, tmp_path, caplog):
    MatchingObjective.from_arguments(arguments(tmp_path, contrastive_loss="sigmoid"), model)
    assert "without a bias" in caplog.text


def test_labels_tie_concepts_to_their_words(processor, tmp_path):
    """The same training with and without labels: only with them a red picture is found to be red."""
    colors = ["red", "green", "blue", "yellow", "white", "black"] * 4
    data = datasets.Dataset.from_dict(
        {
            "image": [Image.new("RGB", (32, 32), color) for color in colors],
            "texts": [[f"a {color} thing"] for color in colors],
            "product": [str(i) for i in range(len(colors))],
            "source_row": list(range(len(colors))),
            "color": colors,
        }
    )
    bank = build_concepts(data, attribute_columns=["color"], language=None, disable_tqdm=True)
    known = bank.label(data, disable_tqdm=True)
    settings = {"num_train_epochs": 60, "eval_strategy": "no", "save_strategy": "no", "training_guard": False}
    found = {}
    for labelled in (False, True):
        model = freeze_towers(attach_concepts(tiny_model(), processor, bank))
        splits = {"train": known if labelled else data, "validation": data}
        folder = tmp_path / str(labelled)
        make_trainer(model, splits, processor, folder, loss_components=["concept"], **settings).train()
        found[labelled] = evaluate_concepts(model, processor, known, disable_tqdm=True)
    for name in ("concepts_image_r_precision", "concepts_text_r_precision"):
        assert found[True][name] > 60  # by chance 17
        assert found[False][name] < 35


def test_concepts_in_an_adapter(splits, processor, tmp_path):
    tiny_concepts(tiny_model(gate_init_value=0.0)).save_pretrained(tmp_path / "base")
    base = FusionMatchModel.from_pretrained(tmp_path / "base")
    config = lora_config(base)
    assert {"concept_bank", "vision_consensus", "text_consensus"} <= set(config.modules_to_save)
    trainer = FusionMatchTrainer(
        base,
        arguments(tmp_path / "run", loss_components=ALL, num_train_epochs=1),
        splits["train"],
        splits["validation"],
        processor,
        peft_config=config,
    )
    trainer.train()
    assert losses(trainer)
