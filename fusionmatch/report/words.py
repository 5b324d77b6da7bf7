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
"""What a report says, in English and in Japanese: the sentences of `words.yaml`."""

from functools import cache
from importlib import resources
from typing import Any

import yaml


LANGUAGES = ("en", "ja")
# Columns of query results that FusionMatch made; all others are the catalogue's.
_OWN_COLUMNS = ("language", "text_length")


@cache
def _read() -> dict[str, dict[str, dict[str, str]]]:
    return yaml.safe_load((resources.files(__package__) / "words.yaml").read_text(encoding="utf-8"))


class Words:
    """
    The words of a language.

    Args:
        language (`str`): `en` or `ja`.

    Raises:
        `ValueError`: another language.
    """

    def __init__(self, language: str = "en") -> None:
        if language not in LANGUAGES:
            raise ValueError(f"A report is written in {' or '.join(LANGUAGES)}, got {language!r}.")
        self.language = language

    def __call__(self, key: str, **figures: Any) -> str:
        """The sentence of a key with its figures filled in."""
        return _read()["sentences"][key][self.language].format(**figures)

    def value(self, value: str) -> str:
        """A value that FusionMatch wrote into a file; the catalogue's own values stay as they are."""
        return _read()["values"].get(value, {}).get(self.language, value)

    def part(self, column: str, value: str) -> str:
        """A value of a column to divide by."""
        return self.value(value) if column in _OWN_COLUMNS else value

    def column(self, name: str) -> str:
        """The name of a column to divide by; the catalogue's own names stay as they are."""
        return self(name) if name in _OWN_COLUMNS else name
