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
import json
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from fusionmatch import FusionMatchModel, FusionMatchTrainer, FusionMatchTrainingArguments
from fusionmatch.commands.fitting import _device_name
from fusionmatch.evaluation.retrieval import embed_catalogue
from fusionmatch.loading import load_pretrained
from fusionmatch.training import callbacks, freeze_towers, lora_config
from fusionmatch.training.pipeline import check_output_dir, fit

from ..core.tiny import perturb, tiny_inputs, tiny_model, tiny_processor


def arguments(folder, **settings):
    defaults = {
        "per_device_train_batch_size": 16,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return FusionMatchTrainingArguments(str(folder), **(defaults | settings))


def make_trainer(model, splits, processor, folder, peft_config=None, **settings):
    return FusionMatchTrainer(
        model,
        arguments(folder, **settings),
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=processor,
        peft_config=peft_config,
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_training_learns_and_ends_with_the_best_epoch(model, splits, processor, tmp_path):
    trainer = make_trainer(freeze_towers(model), splits, processor, tmp_path, num_train_epochs=8)
    before = trainer.evaluate()["eval_rsum"]
    trainer.train()
    measured = [entry["eval_rsum"] for entry in trainer.state.log_history if "eval_rsum" in entry][1:]
    assert max(measured) > before + 20
    assert trainer.evaluate()["eval_rsum"] == pytest.approx(max(measured))


def test_frozen_towers_do_not_change_and_the_rest_does(model, splits, processor, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make_trainer(freeze_towers(model), splits, processor, tmp_path).train()
    for name, tensor in model.state_dict().items():
        in_tower = name.startswith(("vision_model.", "text_model."))
        assert torch.equal(tensor.cpu(), before[name]) == in_tower, name


def test_cached_towers_give_the_losses_of_uncached_ones(splits, processor, tmp_path):
    runs = []
    for cached in (False, True):
        trainer = make_trainer(
            freeze_towers(tiny_model(gate_init_value=0.0)),
            splits,
            processor,
            tmp_path / str(cached),
            cache_tower_features=cached,
        )
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == pytest.approx(runs[1], abs=2e-3)
    assert not (tmp_path / "False" / "feature_cache").exists()


def test_no_decay_for_vectors_gates_scale_and_level_embeddings(model, splits, processor, tmp_path):
    trainer = make_trainer(model, splits, processor, tmp_path, weight_decay=0.1, tower_learning_rate=1e-4)
    groups = trainer.create_optimizer().param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_name = {names[id(p)]: group for group in groups for p in group["params"]}
    assert set(by_name) == {name for name, _ in model.named_parameters()}
    for name in (
        "similarity.logit_scale",
        "vision_fusion.residual.gate",
        "text_fusion.level_embeddings",
        "vision_fusion.level_poolings.0.query",
        "vision_head.fc1.bias",
        "vision_head.layer_norm.weight",
    ):
        assert by_name[name]["weight_decay"] == 0, name
    assert by_name["vision_head.fc1.weight"]["weight_decay"] == 0.1
    assert by_name["vision_head.fc1.weight"]["lr"] == 1e-2
    tower = next(name for name in by_name if name.startswith("text_model.") and name.endswith("weight"))
    assert by_name[tower]["lr"] == 1e-4


@pytest.mark.parametrize("what", ["full", "frozen", "lora", "mini-batches"])
def test_resumed_training_equals_the_uninterrupted_one(what, splits, processor, tmp_path):
    """Bit for bit: losses and weights, from the middle of an epoch on."""
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "batch_sampler": "no_duplicates"}
    settings |= {"save_strategy": "steps", "save_steps": 4, "load_best_model_at_end": False, "save_total_limit": None}
    settings |= {"mini_batch_size": 3 if what == "mini-batches" else None}
    settings |= {"dataloader_num_workers": 1 if what == "lora" else 0}
    # Dropout: the random state has to go on as well.
    tiny_model(feature_dropout=0.2).save_pretrained(tmp_path / "base")

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 10:
                raise KeyboardInterrupt

    def start(folder, seed):
        # What trains starts from another initialisation when resuming: all of it has to come out of the checkpoint.
        model = FusionMatchModel.from_pretrained(tmp_path / "base")
        if what in ("full", "mini-batches"):
            perturb(model, seed)
        elif what == "frozen":
            freeze_towers(model)
            perturb(model.vision_head, seed)
            perturb(model.text_fusion, seed)
        peft_config = lora_config(model) if what == "lora" else None
        torch.manual_seed(seed)
        return make_trainer(model, splits, processor, tmp_path / folder, peft_config, **settings)

    whole = start("whole", 1)
    whole.train()
    interrupted = start("resumed", 1)
    interrupted.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    resumed = start("resumed", 2)
    resumed.train(resume_from_checkpoint=True)
    assert 8 % (whole.state.max_steps // 3) and whole.state.max_steps > 10
    assert (tmp_path / "whole" / "feature_cache").exists() == (what == "frozen")
    logs = [(tmp_path / folder / "losses.jsonl").read_text() for folder in ("whole", "resumed")]
    assert logs[0] == logs[1]
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_waiting_for_data_is_reported(model, splits, processor, tmp_path, caplog):
    trainer = make_trainer(freeze_towers(model), splits, processor, tmp_path, num_train_epochs=1, eval_strategy="no")
    collate = trainer.data_collator
    trainer.data_collator = lambda items: (time.sleep(0.5), collate(items))[1]
    trainer.train()
    assert "waits for its data" in caplog.text


@pytest.mark.parametrize(("share", "said"), [(0.4, True), (0.29, False)])
def test_waiting_for_data_is_said_once_and_early(share, said, monkeypatch, caplog):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    wait, args = callbacks.DataWait(), SimpleNamespace(should_log=True, dataloader_num_workers=0)
    for step in range(120):
        assert caplog.text.count("waits for its data 40% of the time") == (said and step >= 50)
        with wait.waiting():
            clock.now += 10 * share
            with wait.apart():
                clock.now += 50
        clock.now += 10 * (1 - share)
        wait.on_step_end(args, None, None)
        clock.now += 100  # an evaluation
    wait.on_train_end(args, None, None)
    assert caplog.text.count("waits for its data") == said


def test_accumulated_batches_average(splits, processor, tmp_path):
    """Two micro-batches of accumulation weigh as their mean: a constant loss is logged as itself, not halved."""
    trainer = make_trainer(
        tiny_model(), splits, processor, tmp_path, gradient_accumulation_steps=2, max_steps=2, learning_rate=0.0
    )
    trainer.train()
    single = make_trainer(tiny_model(), splits, processor, tmp_path / "single", max_steps=2, learning_rate=0.0)
    single.train()
    assert losses(trainer)[0] == pytest.approx(losses(single)[0], rel=0.2)


def test_nan_stops_with_words_and_keeps_checkpoints(model, splits, processor, tmp_path):
    trainer = make_trainer(freeze_towers(model), splits, processor, tmp_path, num_train_epochs=1)
    trainer.train()
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*/model.safetensors"))
    with torch.no_grad():
        model.similarity.logit_scale.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"`fused` of the loss is nan.*Checkpoints written before are intact"):
        make_trainer(model, splits, processor, tmp_path / "again").train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*/model.safetensors")) == kept != []


def test_no_pickle_in_the_final_folder(model, splits, processor, tmp_path):
    trainer = make_trainer(freeze_towers(model), splits, processor, tmp_path / "run", num_train_epochs=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names)
    assert {"config.json", "model.safetensors", "processor_config.json", "training_args.json"} <= names
    assert json.loads((tmp_path / "out" / "training_args.json").read_text())["num_train_epochs"] == 1


def test_a_batch_larger_than_the_data_still_trains(model, splits, processor, tmp_path):
    trainer = make_trainer(
        freeze_towers(model), splits, processor, tmp_path, per_device_train_batch_size=4096, num_train_epochs=1
    )
    trainer.train()
    assert trainer.state.global_step == 1
    assert losses(trainer)[0] > 0


def test_output_folders(tmp_path):
    assert check_output_dir(tmp_path / "new") is None
    (tmp_path / "run" / "checkpoint-7").mkdir(parents=True)
    assert check_output_dir(tmp_path / "run") is None  # killed before anything was in it
    (tmp_path / "run" / "checkpoint-7" / "trainer_state.json").write_text("{}")
    tiny_model().save_pretrained(tmp_path / "run" / "checkpoint-7")
    assert check_output_dir(tmp_path / "run").endswith("checkpoint-7")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").touch()
    with pytest.raises(ValueError, match=r"thesis\.docx"):
        check_output_dir(tmp_path / "other")


def test_missing_splits_are_named(model, splits, processor, tmp_path):
    with pytest.raises(ValueError, match=r"\['test'\] are missing"):
        fit(model, processor, {name: splits[name] for name in ("train", "validation")}, arguments(tmp_path))


def test_a_frozen_model_is_refused(model, splits, processor, tmp_path):
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        make_trainer(model, splits, processor, tmp_path)


def test_training_clears_the_untrained_mark(splits, processor, tmp_path):
    model = tiny_model(gate_init_value=0.0)
    model.config.untrained_modules = ["vision_head", "text_head", "similarity"]
    make_trainer(freeze_towers(model), splits, processor, tmp_path, num_train_epochs=1).train()
    checkpoint = next(tmp_path.glob("checkpoint-*"))
    assert FusionMatchModel.from_pretrained(checkpoint).config.untrained_modules == []


def test_an_argument_outside_its_range(tmp_path):
    with pytest.raises(ValueError, match="texts_per_image"):
        arguments(tmp_path, texts_per_image=0)
    with pytest.raises(ValueError, match="max_text_length"):
        arguments(tmp_path, max_text_length=1)


def test_a_folder_of_another_run_is_left_alone(splits, processor, tmp_path):
    tiny_model(gate_init_value=0.0).save_pretrained(tmp_path / "base")

    def run(epochs=1, seed=0, data=splits):
        model = FusionMatchModel.from_pretrained(tmp_path / "base")
        if seed:
            perturb(model, seed)
        return fit(freeze_towers(model), processor, data, arguments(tmp_path / "run", num_train_epochs=epochs))

    run()
    kept = (tmp_path / "run" / "metrics.json").read_text()
    with pytest.raises(ValueError, match="its base is"):
        run(epochs=2, seed=3)
    other = splits.map(lambda row: {"texts": [*row["texts"], "more"]})
    with pytest.raises(ValueError, match="its catalogue is"):
        run(epochs=2, data=other)
    with pytest.raises(ValueError, match="had already ended"):
        run()
    assert (tmp_path / "run" / "metrics.json").read_text() == kept
    run(epochs=2)
    assert (tmp_path / "run" / "metrics.json").read_text() != kept


@pytest.mark.parametrize("lora", [False, True])
def test_bf16_weights(lora, splits, processor, tmp_path):
    tiny_model("efficientnet", gate_init_value=0.0).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model, _ = load_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    config = lora_config(model) if lora else None
    fit(model if lora else freeze_towers(model), processor, splits, arguments(tmp_path / "run"), config)
    loaded, _ = load_pretrained(tmp_path / "run")  # an adapter finds its base in another precision as well
    assert torch.isfinite(embed_catalogue(loaded, processor, splits["test"], disable_tqdm=True).image_embeds).all()


def test_bf16_on_a_cpu(splits, processor, tmp_path):
    found = {}
    for bf16 in (False, True):
        settings = {"max_steps": 2, "bf16": bf16, "eval_strategy": "no", "save_strategy": "no", "learning_rate": 1e-3}
        trainer = make_trainer(tiny_model(), splits, processor, tmp_path / str(bf16), **settings)
        trainer.train()
        found[bf16] = losses(trainer)
    assert found[True] != found[False]
    assert found[True] == pytest.approx(found[False], rel=0.02)


@pytest.mark.parametrize("what", ["full", "bf16", "frozen", "another processor"])
def test_bf16_is_advised_where_the_processor_has_it(what, model, splits, processor, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": what != "another processor"})
    make_trainer(freeze_towers(model) if what == "frozen" else model, splits, processor, tmp_path, bf16=what == "bf16")
    assert ("`--use_cpu True --bf16 True` trains the towers in less time" in caplog.text) == (what == "full")


def test_cached_features_can_be_pinned(model, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, device=None: self.clone())
    features = model.encode_tower(**{k: v for k, v in tiny_inputs().items() if k != "pixel_values"})
    pinned = torch.utils.data._utils.pin_memory.pin_memory({"text_features": features})["text_features"]
    assert type(pinned) is type(features)
    assert torch.equal(pinned.levels[0], features.levels[0])


def test_a_smaller_rank_is_better(tmp_path):
    assert arguments(tmp_path, metric_for_best_model="t2i_median_rank").greater_is_better is False
    assert arguments(tmp_path).greater_is_better is True


def test_the_text_limit_is_saved_with_the_model(model, splits, processor, tmp_path):
    result = fit(
        freeze_towers(model), processor, splits, arguments(tmp_path / "run", max_text_length=6, num_train_epochs=1)
    )
    loaded, own_processor = load_pretrained(tmp_path / "run")
    assert own_processor.tokenizer.model_max_length == 6
    again = embed_catalogue(loaded, own_processor, splits["test"], disable_tqdm=True)
    torch.testing.assert_close(again.text_embeds, result.after_embeddings.text_embeds, atol=1e-3, rtol=0)


def test_a_model_of_another_class_is_refused_in_words(tmp_path):
    args = FusionMatchTrainingArguments(str(tmp_path), eval_strategy="no", use_cpu=True)
    with pytest.raises(ValueError, match="Linear is not the FusionMatchModel of this package"):
        FusionMatchTrainer(torch.nn.Linear(2, 2), args, processing_class=tiny_processor())


def test_every_kind_of_device_has_a_name(monkeypatch):
    assert _device_name(torch.device("cpu")).startswith("CPU, ")
    assert _device_name(torch.device("mps")) == "MPS"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA {device.index}")
    assert _device_name(torch.device("cuda:1")) == "NVIDIA 1"
