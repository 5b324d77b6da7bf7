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
"""The wheel holds what it needs and works outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: setuptools leaves a build folder behind, and packs again what an earlier one held.
    left_out = shutil.ignore_patterns(".*", "build", "dist", "demo", "runs", "tests", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    # By way of the source distribution, so that the wheel holds what that one brings along.
    build = "from setuptools import build_meta; build_meta.build_sdist('../sdist')"
    (folder / "sdist").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", build], capture_output=True, text=True, check=False, cwd=folder / "source"
    )
    assert run.returncode == 0, run.stderr
    (sdist,) = (folder / "sdist").glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    run = subprocess.run([*command, str(sdist)], capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_code_metric_report_and_cards_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for name in (
        "fusionmatch/py.typed",
        "fusionmatch/app/space/app.py",
        "fusionmatch/app/space/requirements.txt",
        "fusionmatch/report/report.html",
        "fusionmatch/report/rollout.yaml",
        "fusionmatch/report/words.yaml",
        "fusionmatch/evaluation/metrics/image_text_retrieval/image_text_retrieval.py",
        "fusionmatch/evaluation/metrics/image_text_retrieval/README.md",
        "fusionmatch/model_cards/adapter.md",
    ):
        assert name in names, name
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fusionmatch"}
    assert not any(name.endswith((".jpg", ".png", ".parquet", ".safetensors")) for name in names)


def test_the_wheel_works_outside_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = """
import fusionmatch, importlib.resources, sys
assert "site" in fusionmatch.__file__, fusionmatch.__file__
assert not {"datasets", "peft", "evaluate"} & set(sys.modules), "import must stay light"
from fusionmatch.commands import main
assert main(["sample-shop", "shop", "--num_products", "16"]) == 0
from fusionmatch.evaluation import metric_path
import evaluate
metric = evaluate.load(str(metric_path()))
metric.add_batch(embeddings=[[1.0, 0.0]], modalities=["image"], products=["a"])
metric.add_batch(embeddings=[[1.0, 0.1]], modalities=["text"], products=["a"])
assert metric.compute(ks=[1])["i2t_recall@1"] == 100
assert importlib.resources.files("fusionmatch.model_cards").joinpath("adapter.md").is_file()
"""
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "site"),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert run.returncode == 0, run.stderr[-3000:]
