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
"""What language texts are in."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


UNDETERMINED = "und"
# What is told with this probability is hardly ever wrong; below, relatives such as Danish and Norwegian share it.
_SURE = 0.95
# Share of what is told surely; with less a language is none of the catalogue's own.
_SHARE = 0.01
# Share of the texts that has to be told surely for the others to take one of these languages: one long German text
# among English titles, which are too short to tell, says nothing of them.
_ENOUGH = 0.2


def languages_of(texts: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """
    The language of each text, told by its letters (py3langid). Where many tell it surely, the others have the
    likeliest of the languages that those are in.

    Args:
        texts (iterable of `str`):
            Texts of one catalogue; gone through twice.

    Returns:
        `tuple[list[str], np.ndarray]`: ISO 639 codes, `und` for a text without letters, and for what is not sure where
        few texts are; and which texts tell it themselves, (texts,).
    """
    identifier = _identifier()
    codes, sure = [], []
    for text in texts:
        language, probability = identifier.classify(text) if _has_letters(text) else (UNDETERMINED, 0.0)
        codes.append(language)
        sure.append(probability >= _SURE)
    counts = Counter(code for code, told in zip(codes, sure, strict=True) if told)
    lettered = sum(code != UNDETERMINED for code in codes)
    enough = counts.total() > 0 and counts.total() >= _ENOUGH * lettered
    own = [code for code, count in counts.items() if count >= _SHARE * counts.total()] if enough else []
    try:
        identifier.set_languages(own or None)
        for at, text in enumerate(texts):
            if not sure[at]:
                codes[at] = identifier.classify(text)[0] if own and _has_letters(text) else UNDETERMINED
    finally:
        identifier.set_languages(None)
    return codes, np.array(sure, dtype=bool)


def _has_letters(text: str) -> bool:
    return any(character.isalpha() for character in text)


@cache
def _identifier() -> "LanguageIdentifier":
    """Read when the first text is; that takes a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
