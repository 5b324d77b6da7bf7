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
"""Trainings that push: what arrives is a model that loads, and nothing of the catalogue."""

import json
import threading

import pytest
from huggingface_hub import ModelCard

from fusionmatch.catalogue.sample_shop import write_sample_shop

from ..core.tiny import tiny_model, tiny_processor
from .checks import CHECKPOINT, PROCESSOR
from .loopback_hub import Fault


pytestmark = pytest.mark.usefixtures("no_token_anywhere")

SETTINGS = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "disable_tqdm": True, "use_cpu": True}
STATE = {
    *("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("loss_weighting.safetensors", "clock.safetensors"),
}
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "fusionmatch_base.json"} | PROCESSOR


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write_sample_shop(tmp_path_factory.mktemp("shop"), num_products=60, image_size=48)


@pytest.fixture(scope="module")
def base(client, tmp_path_factory):
    """A base in a folder, and the same on the Hub as `acme/start`."""
    folder = tmp_path_factory.mktemp("start") / "base"
    model = tiny_model(gate_init_value=0.0)
    model.config.untrained_modules = ["vision_head", "text_head", "vision_fusion", "text_fusion", "similarity"]
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    pushed = client.command("push", folder, "acme/start")
    assert pushed.wait() == 0, pushed.text
    return folder


def options(**settings):
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


def nothing_private(hub, name, texts):
    for commit in hub.repositories["models", name].commits:
        for path, content in commit.files.items():
            private = ("queries", "findings", "quarantine", "report", "run.json", "losses", "feature_cache")
            assert not any(word in path for word in private), path
            assert not any(text.encode() in content for text in texts), path


def no_paths(hub, name, folder):
    """Neither the folder nor those above it are named in any file that was ever there."""
    contents = [each for commit in hub.repositories["models", name].commits for each in commit.files.items()]
    assert len(contents) > 5
    assert not [path for path, content in contents if str(folder.parent.parent).encode() in content]


# Once the card is written the other processes are gone, and what is saved by all of them cannot be saved any more.
SAVED_BY_ALL = """if True:
    import sys
    from fusionmatch import FusionMatchTrainer
    from fusionmatch.commands import fitting, main
    write = fitting.write_model_card
    def write_last(*args, **kwargs):
        def refuse(*_, **__):
            raise SystemExit("saved by one process alone")
        FusionMatchTrainer.save_model = refuse
        return write(*args, **kwargs)
    fitting.write_model_card = write_last
    sys.exit(main(sys.argv[1:]))
"""


def test_adapt_pushes_the_finished_adapter(client, hub, base, shop, tmp_path, since):
    texts = [line.split(",")[2] for line in shop.read_text(encoding="utf-8").splitlines()[1:20]]
    assert all(len(text) > 3 for text in texts)
    settings = SETTINGS | {
        "model_name_or_path": "acme/start",
        "catalogue": shop,
        "output_dir": tmp_path / "adapter",
        "push_to_hub": True,
        "hub_model_id": "acme/adapted",
        "hub_strategy": "every_save",
        "hub_always_push": True,
    }
    call = client.start(SAVED_BY_ALL, "adapt", *options(**settings))
    assert call.wait() == 0, call.text[-2000:]
    assert "Pushed to acme/adapted (private)" in call.text
    assert (tmp_path / "adapter" / "report.html").is_file()
    repository = hub.repositories["models", "acme/adapted"]
    assert repository.private
    titles = [commit.title for commit in repository.commits[1:]]
    assert titles == ["Training in progress, epoch 1", "Training in progress, epoch 2", "End of training"]
    files = hub.files("acme/adapted")
    assert files.keys() == ADAPTER | {"README.md", "metrics.json"}
    nothing_private(hub, "acme/adapted", texts)
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "acme/start"
    assert config["revision"] == hub.repositories["models", "acme/start"].branches["main"]
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "acme/start"
    assert "Before and after" in card.text
    assert str(tmp_path) not in "".join(files[name].decode() for name in files if not name.endswith("safetensors"))
    # A search by name finds as one in the folder does, and is as sure.
    calibrate = ["calibrate", *options(model_name_or_path=tmp_path / "adapter", catalogue=shop, validation_size=0.5)]
    for command in (calibrate, ["push", tmp_path / "adapter", "acme/adapted"]):
        call = client.command(*command)
        assert call.wait() == 0, call.text[-2000:]
    query = ["--query", "a red mug", "--catalogue", str(shop), "--json", "True"]
    found = []
    for name in ("acme/adapted", tmp_path / "adapter"):
        search = client.command("search", "--model_name_or_path", name, *query)
        assert search.wait() == 0, search.text[-2000:]
        found.append(json.loads(search.text.strip().splitlines()[-1])["hits"])
    for one, other in zip(*found, strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
    assert 0 < found[0][0]["probability"] == pytest.approx(found[1][0]["probability"], abs=1e-5)


TRAIN = """if True:
    import os, sys
    from fusionmatch import FusionMatchTrainer, FusionMatchTrainingArguments, load_catalogue
    from fusionmatch.loading import load_pretrained
    from fusionmatch.training import freeze_towers, lora_config
    base, shop, folder, strategy, name, hub_base = sys.argv[1:]
    splits = load_catalogue(shop)
    model, processor = load_pretrained(base)
    args = FusionMatchTrainingArguments(
        folder, num_train_epochs=3 if "KEEP" in os.environ else 2, per_device_train_batch_size=16, disable_tqdm=True,
        use_cpu=True, push_to_hub=True, hub_model_id=name, hub_strategy=strategy, hub_always_push=True,
        hub_token=os.environ["HF_TOKEN"], hub_base_model=hub_base if "/" in hub_base else None,
        save_total_limit=int(os.environ.get("KEEP", 2)), load_best_model_at_end="KEEP" not in os.environ,
        hub_private_repo=True if "PRIVATE" in os.environ else None,
    )
    adapter = lora_config(freeze_towers(model), towers=()) if hub_base != "none" else None
    trainer = FusionMatchTrainer(
        freeze_towers(model), args, splits["train"], splits["validation"], processor, peft_config=adapter
    )
    trainer.train(resume_from_checkpoint="RESUME" in os.environ)
    print("TRAINED")
    trainer.push_to_hub()
"""


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [("end", set()), ("checkpoint", {"last-checkpoint"}), ("all_checkpoints", {"checkpoint-3", "checkpoint-6"})],
)
def test_strategies_of_a_trainer_on_a_folder(strategy, folders, client, hub, base, shop, tmp_path):
    name = f"acme/by-{strategy}"
    client.run(TRAIN, base, shop, tmp_path / "out", strategy, name, "acme/start")
    files = hub.files(name)
    assert {path for path in files if "/" not in path} == ADAPTER | {"README.md"}
    assert {path.split("/")[0] for path in files if "/" in path} == folders
    # To go on from a checkpoint takes the optimizer; the model itself is safetensors.
    for folder in folders:
        within = {path.removeprefix(f"{folder}/") for path in files if path.startswith(f"{folder}/")}
        assert within == ADAPTER | STATE
        config, card = json.loads(files[f"{folder}/adapter_config.json"]), ModelCard(files["README.md"].decode())
        assert config["base_model_name_or_path"] == card.data.base_model == "acme/start"
    nothing_private(hub, name, ["SECRET"])
    no_paths(hub, name, tmp_path)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "acme/start"
    assert hub.repositories["models", name].private


def test_a_training_goes_on_from_what_was_pushed(client, hub, base, shop, tmp_path):
    """All weights, and no adapter: the rest of the training is the same here and from the Hub."""
    client.run(TRAIN, base, shop, tmp_path / "out", "all_checkpoints", "acme/whole", "none")
    files = hub.files("acme/whole")
    no_paths(hub, "acme/whole", tmp_path)
    for path, content in files.items():
        if path.startswith("checkpoint-3/"):
            target = tmp_path / "again" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    client.run(TRAIN, base, shop, tmp_path / "again", "end", "acme/again", "none", RESUME="True")
    states = [tmp_path / folder / "checkpoint-6" / "trainer_state.json" for folder in ("out", "again")]
    one, other = (json.loads(path.read_text())["log_history"] for path in states)
    assert one[-1]["step"] == other[-1]["step"] == 6
    assert one[-1]["eval_rsum"] == pytest.approx(other[-1]["eval_rsum"], abs=1e-4)
    assert hub.files("acme/again")["model.safetensors"] == files["model.safetensors"]


def test_a_push_does_not_need_the_checkpoint_that_it_is_of(client, hub, base, shop, tmp_path, since):
    # The first push waits until the training, which keeps one checkpoint, has ended.
    hold = threading.Event()
    hub.faults.append(Fault("POST .*/acme/slow/commit/", hold=hold))
    call = client.start(TRAIN, base, shop, tmp_path / "out", "every_save", "acme/slow", "acme/start", KEEP="1")
    hub.wait_until(lambda: (tmp_path / "out" / "checkpoint-9").exists())
    hub.wait_until(lambda: not (tmp_path / "out" / "checkpoint-3").exists())
    hold.set()
    assert call.wait() == 0, call.text[-2000:]
    assert "A push to the Hub failed" not in call.text
    titles = [commit.title for commit in hub.repositories["models", "acme/slow"].commits[1:]]
    assert titles == [*(f"Training in progress, epoch {epoch}" for epoch in (1, 2, 3)), "End of training"]
    assert not list((tmp_path / "out").glob(".push-*"))


def test_what_cannot_be_pushed_is_said_before_the_training(client, base, shop, tmp_path):
    call = client.start(TRAIN, base, shop, tmp_path / "out", "end", "acme/never", "local")
    assert call.wait() == 1
    assert f"fusionmatch push {base} USER/BASE" in call.text.strip().splitlines()[-1]
    assert "TRAINED" not in call.text


def test_what_should_be_private_does_not_go_where_everybody_sees_it(client, hub, base, shop, tmp_path):
    hub.create("acme/seen")
    arguments = (TRAIN, base, shop, tmp_path / "out", "end", "acme/seen", "acme/start")
    call = client.start(*arguments, PRIVATE="True")
    assert call.wait() == 1
    assert "acme/seen is public already" in call.text.strip().splitlines()[-1]
    assert "TRAINED" not in call.text
    # Asked for at the end alone it is no other.
    call = client.start(TRAIN.replace("push_to_hub()", "push_to_hub(private=True)"), *arguments[1:])
    assert call.wait() == 1
    assert "acme/seen is public already" in call.text.strip().splitlines()[-1]
    assert "TRAINED" in call.text
    assert hub.files("acme/seen") == {}


def test_a_push_that_fails_on_the_way_does_not_end_the_training(client, hub, base, shop, tmp_path, since):
    hub.faults.append(Fault("POST .*/commit/", 500, times=2))
    printed = client.run(TRAIN, base, shop, tmp_path / "out", "every_save", "acme/unlucky", "none")
    assert "A push to the Hub failed, and the training goes on." in printed
    titles = [commit.title for commit in hub.repositories["models", "acme/unlucky"].commits[1:]]
    assert titles == ["End of training"]
    # No adapter but all weights, and public, as transformers has it.
    assert hub.files("acme/unlucky").keys() == CHECKPOINT | {"README.md"}
    assert not hub.repositories["models", "acme/unlucky"].private
