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
"""The README's Python runs as it stands, on a small base and a small shop."""

import re
from pathlib import Path

import pytest

from fusionmatch.catalogue.sample_shop import write_sample_shop

from .core.tiny import tiny_model, tiny_processor


README = Path(__file__).parents[1] / "README.md"


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model(gate_init_value=0.0).save_pretrained("base")
    tiny_processor().save_pretrained("base")
    write_sample_shop("shop", num_products=60, image_size=48)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["outputs"].logits_per_image.shape == (2, 2)
    assert len(names["index"].search("a red leather boot", top_k=3)) == 3


@pytest.mark.parametrize("target", ["demo", "test", "bench"])
def test_the_makefile_has_what_the_readme_names(target):
    assert re.search(rf"^{target}:", (README.parent / "Makefile").read_text(), re.MULTILINE)


def test_every_linked_file_is_there():
    for document in [README, *README.parent.glob("docs/*.md"), README.parent / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name} links to {link}"
