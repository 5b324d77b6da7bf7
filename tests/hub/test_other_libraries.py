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
"""What is on a Hub, pushed and loaded by others: transformers, with and without FusionMatch, sentence-transformers."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from fusionmatch.loading import load_pretrained

from ..core.tiny import tiny_inputs, tiny_pictures
from .checks import (
    CHECKPOINT,
    EMBED,
    embeddings,
    same,
)
from .client import ROOT, hub_environment


pytestmark = pytest.mark.usefixtures("no_token_anywhere")


def test_transformers_own_pushes(client, base, tmp_path):
    code = """if True:
        import sys
        from fusionmatch.loading import load_pretrained
        model, processor = load_pretrained(sys.argv[1])
        model.push_to_hub("acme/own", private=True)
        processor.push_to_hub("acme/own")
        model.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="acme/saved")
        processor.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="acme/saved")
        from transformers import AutoModel, AutoProcessor
        AutoProcessor.from_pretrained("acme/own")
        assert type(AutoModel.from_pretrained("acme/own")).__name__ == "FusionMatchModel"
    """
    client.run(code, base, tmp_path / "saved")
    for name in ("acme/own", "acme/saved"):
        client.run(EMBED, name, tmp_path / "found", "{}")
        assert same(tmp_path / "found", embeddings(load_pretrained(base)[0]))


def test_code_goes_along_on_request_for_who_has_no_fusionmatch(client, hub, hub_home, base, tmp_path):
    ranking, processor = load_pretrained(base, ranking_stage=True)
    ranking.save_pretrained(tmp_path / "ranking")
    processor.save_pretrained(tmp_path / "ranking")
    for folder, name in ((base, "acme/code"), (tmp_path / "ranking", "acme/ranking")):
        pushed = client.command("push", folder, name, "--include_code", "True")
        assert pushed.wait() == 0, pushed.text
    code = """if True:
        import sys, torch
        from safetensors.torch import load_file, save_file
        from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor, pipeline
        sys.modules["fusionmatch"] = None  # importing it is an ImportError, also where it is installed
        inputs, output, picture = sys.argv[1:]
        trust = {"trust_remote_code": True}
        model = AutoModel.from_pretrained("acme/code", **trust)
        with torch.no_grad():
            outputs = model(**load_file(inputs))
        save_file({name: outputs[name].contiguous() for name in ("image_embeds", "text_embeds")}, output)
        processor = AutoProcessor.from_pretrained("acme/code", **trust)
        ranking = AutoModelForPreTraining.from_pretrained("acme/ranking", **trust)
        classify = pipeline("zero-shot-image-classification", model="acme/code", device="cpu", **trust)
        labels = classify(picture, candidate_labels=["a red mug", "a green bowl"])
        print(type(model).__name__, type(processor).__name__, type(ranking).__name__, len(labels))
    """
    save_file(tiny_inputs(), tmp_path / "inputs")
    tiny_pictures(1)[0].save(tmp_path / "picture.png")
    environment = hub_environment(hub.endpoint, hub_home, PYTHONPATH="")
    paths = [str(tmp_path / name) for name in ("inputs", "found", "picture.png")]
    command = [sys.executable, "-c", code, *paths]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    expected = ["FusionMatchModel", "FusionMatchProcessor", "FusionMatchForImageTextRetrieval", "2"]
    assert run.stdout.split()[-4:] == expected
    assert same(tmp_path / "found", embeddings(load_pretrained(base)[0]))
    # With FusionMatch the code is not even fetched, and a push without takes it away.
    before = len(hub.log)
    client.run(EMBED, "acme/code", tmp_path / "found", json.dumps({"cache_dir": str(tmp_path / "cache")}))
    assert not hub.requests(r"\.py$", before)
    assert client.command("push", base, "acme/code").wait() == 0
    assert hub.files("acme/code").keys() == CHECKPOINT


def test_sentence_transformers_by_name(client, hub, hub_home, base, tmp_path):
    """With the files that a push adds and without them; `import fusionmatch`, or remote code and no FusionMatch."""
    for name, options in (("acme/sentences", ()), ("acme/sentences-code", ("--include_code", "True"))):
        pushed = client.command("push", base, name, *options)
        assert pushed.wait() == 0, pushed.text
    hub.create("acme/bare").commit("main", "model", "acme", {path.name: path.read_bytes() for path in base.iterdir()})
    texts, pictures = ["a red mug", "photo of a blue lamp", "a bowl"], tiny_pictures(3)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path)
    model, processor = load_pretrained(base)
    with torch.no_grad():
        expected = {
            "texts": model.get_text_features(**processor(text=texts, padding=True, return_tensors="pt")),
            "pictures": model.get_image_features(**processor(images=pictures, return_tensors="pt")),
        }
    expected = {name: outputs.pooler_output for name, outputs in expected.items()}
    code = """if True:
        import json, sys
        name, alone, output, texts, *paths = sys.argv[1:]
        if alone:
            sys.modules["fusionmatch"] = None  # importing it is an ImportError, also where it is installed
        else:
            import fusionmatch
        from PIL import Image
        from safetensors.torch import save_file
        from sentence_transformers import SentenceTransformer
        encoder = SentenceTransformer(name, device="cpu", trust_remote_code=bool(alone))
        encode = lambda inputs: encoder.encode(inputs, convert_to_tensor=True)
        found = {"texts": encode(json.loads(texts)), "pictures": encode([Image.open(path) for path in paths])}
        save_file(found, output)
        print(encoder.get_embedding_dimension(), encoder.similarity_fn_name)
    """
    output = tmp_path / "found"
    for name, alone in (("acme/sentences", ""), ("acme/bare", ""), ("acme/sentences-code", "alone")):
        arguments = [name, alone, str(output), json.dumps(texts), *map(str, paths)]
        environment = hub_environment(hub.endpoint, hub_home, PYTHONPATH="" if alone else str(ROOT))
        command = [sys.executable, "-c", code, *arguments]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        assert run.stdout.split()[-2:] == [str(model.config.projection_dim), "cosine"]
        # The files are what makes the length of each embedding 1.
        wanted = {k: v if name == "acme/bare" else torch.nn.functional.normalize(v) for k, v in expected.items()}
        assert same(output, wanted)
