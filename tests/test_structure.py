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
"""Rules of the source itself: transformers' model linter, headers, and what would silently switch checks off."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

import fusionmatch


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fusionmatch"
SOURCES = sorted(PACKAGE.rglob("*.py"))
CORE = sorted(PACKAGE.glob("*_fusionmatch*.py"))

# Rules of mlinter that do not fit a plugin, with the reason.
OFF = {
    "TRF057": "its @auto_docstring prints None for models outside transformers; docstrings are written by hand",
    "TRF041": "its CODEPATH notes name transformers' own released checkpoints",
}


def test_model_linter_finds_nothing(tmp_path):
    mlinter = pytest.importorskip("mlinter", reason="transformers-mlinter is not installed")
    rules = (Path(mlinter.__file__).parent / "rules.toml").read_text()
    for rule in OFF:
        head, section = rules.split(f"[rules.{rule}]\n")
        rules = f"{head}[rules.{rule}]\n{section.replace('default_enabled = true', 'default_enabled = false', 1)}"
    (tmp_path / "rules.toml").write_text(rules)
    command = [sys.executable, "-m", "mlinter", PACKAGE.name, "--no-progress", "--rules-toml", tmp_path / "rules.toml"]
    result = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_core_is_the_files_that_the_hub_uploads():
    assert [path.name for path in CORE] == [
        "configuration_fusionmatch.py",
        "consensus_fusionmatch.py",
        "heads_fusionmatch.py",
        "losses_fusionmatch.py",
        "modeling_fusionmatch.py",
        "modeling_fusionmatch_branch.py",
        "modeling_fusionmatch_pretrained.py",
        "modeling_fusionmatch_ranking.py",
        "outputs_fusionmatch.py",
        "processing_fusionmatch.py",
        "towers_fusionmatch.py",
    ]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_has_no_postponed_annotations(path):
    # They turn the strict configuration's type checks off, and `config_class` into a string, without a word.
    assert "from __future__ import annotations" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_licence_header(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# Copyright 2026 The FusionMatch team. All rights reserved."
    assert lines[2] == '# Licensed under the Apache License, Version 2.0 (the "License");'


@pytest.mark.parametrize(
    ("found", "warned"), [("5.22.2", True), ("5.23.0", False), ("5.24.9", False), ("5.25.0", True)]
)
def test_an_untried_transformers_is_named_with_the_remedy(found, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fusionmatch._check_transformers(found)
    words = [str(each.message) for each in caught]
    assert len(words) == warned
    assert all(f"and {found} is installed" in line and "pip install" in line for line in words)


def test_the_constraints_are_within_the_tested_range():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (pinned,) = [line.split("==")[1] for line in lines if line.startswith("transformers==")]
    assert pinned in fusionmatch.TESTED_TRANSFORMERS


def test_the_matrix_of_ci_is_the_tested_range():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert tuple(matrix["transformers"]) == fusionmatch.TESTED_TRANSFORMERS
