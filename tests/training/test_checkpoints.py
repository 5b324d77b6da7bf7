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
"""A training that is killed, or whose disk is full, goes on from what is whole."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fusionmatch import FusionMatchModel, FusionMatchTrainer
from fusionmatch.commands import fitting, main
from fusionmatch.training import checkpoints, freeze_towers, lora_config, pipeline
from fusionmatch.training.callbacks import LossLog
from fusionmatch.training.checkpoints import STATE_FILE, last_whole_checkpoint, what_is_broken
from fusionmatch.training.guards import TrainingGuard, TrainingStoppedError

from ..core.tiny import perturb, tiny_model, tiny_processor
from .test_trainer import arguments, make_trainer


@pytest.fixture
def options(shop, tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_processor().save_pretrained(tmp_path / "base")
    return {
        "model_name_or_path": tmp_path / "base",
        "catalogue": shop,
        "mini_batch_size": 8,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 3,
        "eval_strategy": "no",
        "disable_tqdm": "True",
    }


@pytest.fixture
def command(options):
    return words("train", options | {"freeze_vision_model": "False"})


def words(command, options):
    return [command, "--use_cpu", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def killed_while_writing(command, folder):
    """Starts a training and kills it while its third checkpoint or a later one is being written."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fusionmatch", *command, "--output_dir", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        for path in folder.glob("checkpoint-*"):
            if int(path.name.split("-")[1]) >= 3 and not (path / STATE_FILE).exists():
                process.send_signal(signal.SIGKILL)
                process.wait()
                return path
        time.sleep(0.0005)
    return None


def test_killed_in_the_middle_of_a_checkpoint(options, tmp_path, caplog):
    command = words("adapt", options)
    assert main([*command, "--output_dir", str(tmp_path / "whole")]) == 0
    for attempt in range(3):
        folder = tmp_path / f"killed-{attempt}"
        path = killed_while_writing(command, folder)
        if path is not None and what_is_broken(path) is not None:
            break
    else:
        pytest.fail("the training was never caught in the middle of writing")
    before = int(path.name.split("-")[1]) - 1
    assert main([*command, "--output_dir", str(folder)]) == 0
    assert f"{path} is not whole" in caplog.text
    assert f"Going on from {folder / f'checkpoint-{before}'}" in caplog.text
    ends = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", folder.name)]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
    logs = [(tmp_path / name / "losses.jsonl").read_text() for name in ("whole", folder.name)]
    assert logs[0] == logs[1]


HARMS = ["no state", "half a state", "weights cut short", "no weights", "optimizer cut short", "no optimizer"]


@pytest.mark.parametrize("harm", HARMS)
def test_the_last_whole_checkpoint_is_found(harm, model, splits, processor, tmp_path, caplog):
    make_trainer(model, splits, processor, tmp_path, num_train_epochs=3, save_total_limit=None).train()
    first, second, last = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert last_whole_checkpoint(tmp_path) == str(last)
    state, weights = last / STATE_FILE, last / "model.safetensors"
    if harm == "no state":
        state.unlink()
    elif harm == "half a state":
        state.write_text(state.read_text()[:200])
    elif harm == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "optimizer cut short":
        (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:-100])
    elif harm == "no optimizer":
        (last / "optimizer.pt").unlink()
    else:
        (last / "loss_weighting.safetensors").write_bytes(weights.read_bytes())
        weights.unlink()
    assert last_whole_checkpoint(tmp_path) == str(second)
    assert f"{last} is not whole" in caplog.text
    shutil.rmtree(first)
    shutil.rmtree(second)
    assert last_whole_checkpoint(tmp_path) is None


def test_the_seconds_of_a_training_go_on_with_it(model, splits, processor, tmp_path):
    make_trainer(model, splits, processor, tmp_path, num_train_epochs=1).train()
    checkpoint = last_whole_checkpoint(tmp_path)
    seconds = load_file(f"{checkpoint}/clock.safetensors")["seconds"].item()
    trainer = make_trainer(model, splits, processor, tmp_path, num_train_epochs=2)
    (tmp_path / "checkpoint-999").mkdir()  # of a run that was killed while writing it
    trainer.train(resume_from_checkpoint=True)
    assert trainer.clock.before == seconds > 0
    assert load_file(f"{last_whole_checkpoint(tmp_path)}/clock.safetensors")["seconds"].item() > seconds


def test_a_run_killed_in_its_first_checkpoint_starts_anew(command, tmp_path):
    (tmp_path / "out" / "checkpoint-1").mkdir(parents=True)
    assert main([*command, "--output_dir", str(tmp_path / "out"), "--max_steps", "2"]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps"] == 2


def test_no_room_is_said_before_anything_is_trained(command, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=10 * 2**20))
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 1
    assert "The checkpoints of this training need about" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_the_room_that_is_asked_for_is_what_the_checkpoints_take(command, tmp_path, monkeypatch, capsys):
    command = [*command, "--save_total_limit", "1", "--num_train_epochs", "3"]
    assert main([*command, "--output_dir", str(tmp_path / "first")]) == 0
    sizes = {path: sum(each.stat().st_size for each in path.iterdir()) for path in tmp_path.glob("first/checkpoint-*")}
    # The one that is kept, the one that is being written, and the weights at the end.
    weights = (tmp_path / "first" / "model.safetensors").stat().st_size
    needed = 2 * max(sizes.values()) + weights
    usage = shutil.disk_usage(tmp_path)
    for free, code in ((0.7 * needed, 1), (1.3 * needed, 0)):
        left = checkpoints.SPARE_BYTES + int(free)
        monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _, left=left: usage._replace(free=left))
        assert main([*command, "--output_dir", str(tmp_path / f"again-{code}")]) == code, capsys.readouterr().err


def test_a_disk_that_fills_up_is_said_in_words(model, splits, processor, tmp_path, monkeypatch):
    trainer = make_trainer(model, splits, processor, tmp_path, num_train_epochs=1)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(trainer, "_save_rng_state", full)
    with pytest.raises(OSError, match="No space left"):  # not a full disk, whatever it says
        trainer.train()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(OSError, match=r"is full \(1 MiB left\).*goes on from what is whole"):
        trainer.train()


def test_a_folder_that_cannot_be_written_to(command, capsys):
    assert main([*command, "--output_dir", "/proc/fusionmatch"]) == 1
    assert "`output_dir` /proc/fusionmatch cannot be written to" in capsys.readouterr().err


STEPS = {"max_steps": 1, "save_steps": 1, "save_strategy": "steps", "eval_strategy": "no"}


@pytest.fixture
def start(splits, processor, tmp_path):
    """Begins or goes on with one run."""
    tiny_model(gate_init_value=0.0).save_pretrained(tmp_path / "base")

    def fit(adapter=None, **settings):
        model = FusionMatchModel.from_pretrained(tmp_path / "base")
        args = arguments(tmp_path / "run", **(STEPS | settings))
        if adapter is None:
            return pipeline.fit(freeze_towers(model), processor, splits, args)
        return pipeline.fit(model, processor, splits, args, lora_config(model, **adapter))

    return fit


def test_a_run_that_a_guard_stopped_is_not_gone_on_with(start, tmp_path, monkeypatch):
    check, count = TrainingGuard.check, iter(range(99))

    def stop(guard, *args, **kwargs):
        if next(count) == 2:
            raise TrainingStoppedError("The learning rate is too high. Try a tenth of it.")

    monkeypatch.setattr(TrainingGuard, "check", stop)
    with pytest.raises(TrainingStoppedError):
        start(max_steps=9, save_total_limit=None)
    monkeypatch.setattr(TrainingGuard, "check", check)
    for resume in (None, "True"):
        with pytest.raises(ValueError, match=r"was stopped.*Try a tenth of it\. Name another `--output_dir`"):
            start(max_steps=9, resume_from_checkpoint=resume)
    # One that was named is the user's own choice, and what follows is a run like any other: also where it is killed
    # before its first checkpoint, it does not go on from those of the training that was stopped.
    named = {"resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-1"), "learning_rate": 1e-3}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FusionMatchTrainer, "_save_checkpoint", interrupt)
        start(max_steps=2, **named)
    assert (tmp_path / "run" / "left-checkpoint-2" / "model.safetensors").is_file()
    assert last_whole_checkpoint(tmp_path / "run") == named["resume_from_checkpoint"]
    start(max_steps=2, learning_rate=1e-3)
    # The rate is the new one.
    state = json.loads((tmp_path / "run" / "checkpoint-2" / STATE_FILE).read_text())
    rates = {entry["step"]: entry["learning_rate"] for entry in state["log_history"] if "loss" in entry}
    assert rates[1] > 1e-3 >= rates[2]
    start(max_steps=3)


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_weights_that_are_not_finite_are_not_saved(start, tmp_path, monkeypatch):
    """The gradient of a finite loss is not: the loss of the next step would say so, after the checkpoint."""
    clip = FusionMatchTrainer._clip_grad_norm

    def broken(trainer, model):
        if trainer.state.global_step == 1:
            next(p for p in model.parameters() if p.requires_grad).grad.fill_(torch.nan)
        return torch.zeros(())

    monkeypatch.setattr(FusionMatchTrainer, "_clip_grad_norm", broken)
    with pytest.raises(FloatingPointError, match=r"After step 2 weights are not finite .*; they are not saved"):
        start(max_steps=4)
    assert last_whole_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-1")
    monkeypatch.setattr(FusionMatchTrainer, "_clip_grad_norm", clip)
    with pytest.raises(ValueError, match=r"was stopped.* weights are not finite"):
        start(max_steps=4)
    start(max_steps=2, resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_a_checkpoint_that_is_written_over_another_is_not_whole_before_its_end(start, tmp_path, monkeypatch):
    start(max_steps=2)
    shutil.copytree(tmp_path / "run" / "checkpoint-2", tmp_path / "kept")
    named = {"resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-1")}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FusionMatchTrainer, "_save_rng_state", interrupt)
        # Written there by another process meanwhile.
        patched.setattr(pipeline, "set_aside_later", lambda _: None)
        start(max_steps=2, **named)
    assert what_is_broken(tmp_path / "kept") is None
    assert STATE_FILE in what_is_broken(tmp_path / "run" / "checkpoint-2")


def test_losses_are_written_before_the_checkpoint_that_is_gone_on_from(start, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("transformers.trainer.rotate_checkpoints", interrupt)
        start(max_steps=4, save_steps=2, logging_steps=50)
    start(max_steps=4, save_steps=2, logging_steps=50)
    lines = (tmp_path / "run" / LossLog.FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]


def test_a_checkpoint_of_an_adapter_on_another_base_is_refused_wherever_it_is_gone_on_with(start, tmp_path):
    start({"r": 2})
    shutil.copytree(tmp_path / "run" / "checkpoint-1", tmp_path / "alone" / "checkpoint-1")
    perturb(model := tiny_model(gate_init_value=0.0), 7)
    model.save_pretrained(tmp_path / "base")
    for folder, words in (("run", "its base is"), ("alone", "is of an adapter of another base: its fingerprint is")):
        shutil.copytree(tmp_path / folder, tmp_path / f"{folder}-kept")
        named = str(tmp_path / f"{folder}-kept" / "checkpoint-1")
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        with pytest.raises(ValueError, match=words):
            start({"r": 2}, max_steps=2, resume_from_checkpoint=named)


def test_a_named_checkpoint_that_is_not_whole_is_said(start, tmp_path):
    start()
    weights = tmp_path / "run" / "checkpoint-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for name, words in (("checkpoint-1", "SafetensorError"), ("checkpoint-9", "No such file")):
        with pytest.raises(ValueError, match=f"{name} is no whole checkpoint to go on from: .*{words}"):
            start(max_steps=2, resume_from_checkpoint=str(tmp_path / "run" / name))


def test_a_run_without_its_card_is_measured_again(command, tmp_path, monkeypatch, capsys):
    command = [*command, "--output_dir", str(tmp_path / "out"), "--max_steps", "2"]
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "write_report", interrupt)
        assert main(command) == 130
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert main(command) == 0
    assert all((tmp_path / "out" / name).is_file() for name in ("report.html", "README.md", "metrics.json"))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert main(command) == 1
    assert "had already ended" in capsys.readouterr().err


def test_what_trackers_and_a_kill_leave_behind_is_no_obstacle(start, tmp_path):
    (tmp_path / "run" / "runs").mkdir(parents=True)
    (tmp_path / "run" / "emissions.csv").touch()
    (tmp_path / "run" / ".quarantine.jsonl.abc").touch()
    start()


def test_a_disk_that_is_full_at_the_end_is_said_in_words(start, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)

    def full(*_, **__):
        monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(FusionMatchTrainer, "save_model", full)
    with pytest.raises(OSError, match=r"is full \(1 MiB left\), and the result is not whole"):
        start(save_strategy="no")


def test_a_run_that_a_guard_stopped_before_its_first_checkpoint_starts_anew(start, monkeypatch):
    def stop(guard, *args, **kwargs):
        raise TrainingStoppedError("The learning rate is too high.")

    with monkeypatch.context() as patched, pytest.raises(TrainingStoppedError):
        patched.setattr(TrainingGuard, "check", stop)
        start()
    assert start().after["rsum"] > 0


def test_what_would_not_fit_a_checkpoint_is_refused_and_what_may_change_is_said(start, caplog):
    start({"r": 2})
    for adapter, settings, words in (
        ({"r": 4}, {}, "its adapter's r is 2, now it is 4"),
        ({"r": 2, "towers": ()}, {}, "its adapter's target_modules is"),
        ({"r": 2}, {"loss_components": ["fused", "instance"]}, r"its loss_components is \['fused'\]"),
        ({"r": 2}, {"loss_weighting": "uncertainty"}, "its loss_weighting is unit"),
        ({"r": 2}, {"contrastive_loss": "triplet"}, "its contrastive_loss is infonce"),
        ({"r": 2}, {"tower_learning_rate": 1e-4}, "its own rate of the towers is False"),
        ({"r": 2}, {"optim": "sgd"}, "its optim is adamw"),
        ({"r": 2}, {"weight_decay": 0.5}, "its weight_decay is 0.05, now it is 0.5"),
        (None, {}, "its trains is an adapter, now it is weights"),
    ):
        with pytest.raises(ValueError, match=words):
            start(adapter, max_steps=2, **settings)
    changed = {"seed": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-4, "texts_per_image": 1}
    caplog.clear()
    start({"r": 2}, max_steps=2, **changed)
    for words in (
        "seed` 42, now it is 3",
        "batch_size` 16, now",
        "rate` 0.01, now it is 0.0001",
        "image` 5, now it is 1",
    ):
        assert words in caplog.text
    caplog.clear()
    start({"r": 2}, max_steps=3)
    assert "began with" not in caplog.text


def test_a_longer_run_that_was_killed_after_its_last_step_is_measured(start, tmp_path, monkeypatch):
    start(max_steps=3)
    measure, count = pipeline._measure, iter(range(9))

    def killed(*args):
        if next(count) == 1:
            raise KeyboardInterrupt
        return measure(*args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pipeline, "_measure", killed)
        start(max_steps=6)
    start(max_steps=6)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 6
    with pytest.raises(ValueError, match="had already ended, at step 6"):
        start(max_steps=6)


def test_a_run_that_ended_in_the_middle_of_an_epoch_trains_no_further(start, tmp_path):
    start(max_steps=2)
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="had already ended, at step 2"):
        start(max_steps=2)
    # Killed before it was measured, it is the same run.
    (tmp_path / "run" / "metrics.json").unlink()
    start(max_steps=2)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 2


def test_the_time_counts_what_is_prepared_and_not_the_measuring(start, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def taking(seconds, function):
        def slow(*args, **kwargs):
            clock.now += seconds
            return function(*args, **kwargs)

        return slow

    monkeypatch.setattr(pipeline, "FusionMatchTrainer", taking(10, pipeline.FusionMatchTrainer))
    monkeypatch.setattr(pipeline, "_measure", taking(1000, pipeline._measure))
    assert start().seconds == 10


def test_half_a_line_of_the_losses_is_left_out(tmp_path):
    path = tmp_path / LossLog.FILE
    lines = [json.dumps({"step": step, "fused": 2.0}) for step in range(4)]
    path.write_text("\n".join([lines[0], lines[1][:12] + lines[2], lines[1], lines[3], lines[2][:9]]))
    LossLog(path).on_train_begin(None, SimpleNamespace(global_step=3), None)
    assert path.read_text() == f"{lines[0]}\n{lines[1]}\n"
    assert list(tmp_path.iterdir()) == [path]
