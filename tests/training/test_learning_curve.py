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
"""The curve over the number of labels: what it measures, and that it goes on where it stopped."""

import csv
import json

import pytest
from safetensors.torch import load_file, save_file

from fusionmatch.commands import main
from fusionmatch.training import learning_curve as module

from ..core.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def run(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    tiny_model().save_pretrained(folder / "base")
    tiny_processor().save_pretrained(folder / "base")
    files = {"model_name_or_path": folder / "base", "catalogue": shop, "output_dir": folder / "curve"}
    options = files | {"num_train_epochs": 2, "per_device_train_batch_size": 16, "disable_tqdm": "True"}
    options |= {"preset": "fast", "pseudo_pair_threshold": 0, "image_views": 1}
    argv = [
        "learning-curve",
        "--use_cpu",
        *(str(part) for name, value in options.items() for part in (f"--{name}", value)),
    ]

    def call(*more):
        code = main([*argv, *more])
        path = folder / "curve" / "learning_curve.csv"
        return code, folder / "curve", list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))

    return call


def test_the_curve_is_measured_and_goes_on(run, splits, capsys, monkeypatch):
    code, folder, points = run("--labels", "12", "--seeds", "0", "1")
    assert code == 0
    assert [point["labels"] for point in points] == ["0", "12"]
    base = json.loads((folder / "12-labels-seed-0" / "metrics.json").read_text())
    assert float(points[0]["alone"]) == pytest.approx(base["before"]["rsum"], abs=0.01)
    after = [
        json.loads((folder / f"12-labels-seed-{s}" / "metrics.json").read_text())["after"]["rsum"] for s in (0, 1)
    ]
    assert float(points[1]["alone"]) == pytest.approx(sum(after) / 2, abs=0.01)
    gain = float(points[1]["unpaired"]) - float(points[1]["alone"])
    assert float(points[1]["difference"]) == pytest.approx(gain, abs=0.02)
    found = [json.loads((folder / f"12-unpaired-seed-{s}" / "metrics.json").read_text()) for s in (0, 1)]
    pairs = [each["pseudo_pairs"] for each in found]
    assert float(points[1]["pseudo_pairs"]) == sum(pairs) / 2 > 0
    right = sum(count * each["pseudo_pair_precision"] for count, each in zip(pairs, found, strict=True))
    assert float(points[1]["precision"]) == pytest.approx(right / sum(pairs))
    assert (folder / "learning_curve.png").stat().st_size > 10_000
    assert not list(folder.glob("*/checkpoint-*"))

    # A second call trains only what is new: all labels, once, without anything unpaired.
    trained, fit = [], module.fit
    monkeypatch.setattr(
        module, "fit", lambda *args, **kwargs: trained.append(args[3].output_dir) or fit(*args, **kwargs)
    )
    _, _, again = run("--labels", "12", "10000", "--seeds", "0", "1")
    total = str(len(splits["train"]))
    assert [path.rsplit("/", 1)[1] for path in trained] == [
        f"{total}-labels-seed-0",
        f"{total}-labels-seed-1",
    ]
    assert again[:2] == points
    assert again[2]["labels"] == total and again[2]["unpaired"] == ""
    assert f"{total:>8} " in capsys.readouterr().out


def test_other_settings_in_the_same_folder_are_refused(run, capsys):
    assert run("--labels", "12")[0] == 0
    assert run("--labels", "12", "--learning_rate", "0.5")[0] == 1
    assert "measured with another `learning_rate` (0.001, now 0.5)" in capsys.readouterr().err


def test_another_base_of_the_same_name_is_refused(run, capsys):
    _, folder, points = run("--labels", "12")
    weights = folder.parent / "base" / "model.safetensors"
    kept, state = weights.read_bytes(), load_file(weights)
    save_file(state | {"vision_head.fc1.bias": state["vision_head.fc1.bias"] + 1}, weights, {"format": "pt"})
    try:
        code, _, again = run("--labels", "12")
    finally:
        weights.write_bytes(kept)
    assert (code, again) == (1, points)
    assert f"The run in {folder / '12-labels-seed-0'} is another one: its base is" in capsys.readouterr().err


def test_a_folder_of_an_earlier_version_is_gone_on_with(run, tmp_path):
    _, folder, points = run("--labels", "12")
    path = folder / "settings.json"
    settings = json.loads(path.read_text())
    assert settings.pop("download_images") is False
    path.write_text(json.dumps(settings))
    assert run("--labels", "12", "--image_cache_dir", str(tmp_path), "--hub_model_id", "acme/shop")[::2] == (0, points)


def test_numbers_of_labels_that_make_no_sense_are_refused(run, capsys):
    assert run("--labels", "1")[0] == 1
    assert "between 2 and the" in capsys.readouterr().err
