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
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fusionmatch.evaluation import metric_path, retrieval_metrics


FRESH_PROCESS = """
import doctest, json, sys
import evaluate, numpy as np
from fusionmatch.evaluation import metric_path

data = np.load(sys.argv[1])
metric = evaluate.load(str(metric_path()))
for start in range(0, 50, 7):
    metric.add_batch(**{name: column[start : start + 7].tolist() for name, column in data.items()})
whole = {name: column.tolist() for name, column in data.items()}
runner = doctest.DocTestRunner()
usage = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, "usage", None, 0)
results = {
    "batches": metric.compute(ks=[1, 5, 10]),
    "at_once": metric.compute(**whole, ks=[2]),
    "usage": runner.run(usage),
    "card": doctest.testfile(str(metric_path() / "README.md"), module_relative=False),
}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def data():
    """30 images and 20 texts of 15 products, mixed."""
    generator = np.random.default_rng(0)
    order = generator.permutation(50)
    return {
        "embeddings": generator.normal(size=(50, 8)).astype(np.float32),
        "modalities": np.array(["image"] * 30 + ["text"] * 20)[order],
        "products": np.array([f"product {index % 15}" for index in range(50)])[order],
    }


@pytest.fixture
def metric(tmp_path):
    script = metric_path() / "image_text_retrieval.py"
    spec = importlib.util.spec_from_file_location("image_text_retrieval", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ImageTextRetrieval(cache_dir=str(tmp_path))


def test_loads_offline_in_a_fresh_process_and_its_documented_examples_hold(data, tmp_path):
    np.savez(tmp_path / "data.npz", **data)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH_PROCESS, str(tmp_path / "data.npz")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert process.returncode == 0, process.stderr
    *report, last = process.stdout.splitlines()
    results = json.loads(last)

    images, texts = data["modalities"] == "image", data["modalities"] == "text"
    arguments = [data[column][side] for column in ("embeddings", "products") for side in (images, texts)]
    assert results["batches"] == retrieval_metrics(*arguments)
    assert results["at_once"] == retrieval_metrics(*arguments, ks=[2])
    for name in ("usage", "card"):
        failed, attempted = results[name]
        assert failed == 0, "\n".join(report)
        assert attempted >= 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": ["image", "picture"]}, r'must hold "image" or "text", got \[\'picture\'\]'),
        ({"modalities": ["image", "image"]}, "got 2 images and 0 texts"),
        ({"modalities": ["text", "text"]}, "got 0 images and 2 texts"),
        ({"embeddings": [[1.0], [1.0, 2.0]]}, r"must have one width, got embeddings of \[1, 2\] dimensions"),
        ({"products": ["cup", "shoe"]}, "No image shares its product with a text"),
        ({"products": [1, 1]}, "don't match the expected format"),
    ],
)
def test_bad_input_is_refused_with_words(metric, change, message):
    good = {"embeddings": [[1.0, 2.0], [1.0, 2.0]], "modalities": ["image", "text"], "products": ["cup", "cup"]}
    with pytest.raises(ValueError, match=message):
        metric.compute(**(good | change))


def test_an_unknown_metric_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no metric named 'bleu'.*: image_text_retrieval\."):
        metric_path("bleu")
