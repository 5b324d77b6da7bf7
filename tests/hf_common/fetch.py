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
"""
Fetches transformers' own common tests in the version that is installed.

They are part of transformers' source distribution, not of its wheel. `python tests/hf_common/fetch.py` downloads that
archive and keeps the three files that `test_fusionmatch.py` runs, in `upstream/` (not tracked: nine thousand lines of
another project). A second call does nothing until another version of transformers is installed.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


UPSTREAM = Path(__file__).parent / "upstream"
VERSION_FILE = UPSTREAM / "VERSION"
FILES = ("test_modeling_common.py", "test_configuration_common.py", "test_processing_common.py")

# What the three files import from folders that the archive leaves out. They lie as in transformers' own repository.
STAND_INS = {
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def upstream_problem() -> str | None:
    """Why the upstream tests cannot be run; `None` when they are there in the installed version."""
    found = VERSION_FILE.read_text().strip() if VERSION_FILE.is_file() else "none"
    if found == version("transformers"):
        return None
    return (
        f"transformers' common tests are not there in the installed version ({version('transformers')}; found: "
        f"{found}). Run `python tests/hf_common/fetch.py` first."
    )


def fetch() -> None:
    """Brings `upstream/` to the installed version of transformers."""
    if upstream_problem() is None:
        return
    wanted = version("transformers")
    shutil.rmtree(UPSTREAM, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        # The archive is only unpacked, never built: no build isolation spares the download of build tools.
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*download, "--no-build-isolation", "--dest", folder, f"transformers=={wanted}"], check=True)
        with tarfile.open(next(Path(folder).glob("transformers-*.tar.gz"))) as archive:
            for name in FILES:
                target = UPSTREAM / "tests" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(f"transformers-{wanted}/tests/{name}").read())
    for name, text in STAND_INS.items():
        target = UPSTREAM / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for folder in ("", "tests", *(Path(name).parent for name in STAND_INS)):
        (UPSTREAM / folder / "__init__.py").touch()
    # Last, so that an interrupted run is repeated.
    VERSION_FILE.write_text(f"{wanted}\n")


if __name__ == "__main__":
    fetch()
