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
"""Listings whose picture and text may not belong together, as a page to go through and a table to work with."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..catalogue import Intake
from ..catalogue.quarantine import for_spreadsheet
from ..evaluation.mismatches import SUSPICIOUS, Listing
from .page import environment
from .record import shortened, shown_picture
from .words import Words


LISTINGS_PAGE, LISTINGS_TABLE = "listings.html", "listings.csv"
_COLUMNS = (
    "source",
    "row",
    "image_id",
    "product",
    "text",
    "share_that_fits_better",
    "fits_image_id",
    "fits",
    "swapped_with",
    "probability",
)


def write_listings(
    folder: str | Path,
    listings: Sequence[Listing],
    intake: Intake,
    catalogue: str,
    language: str = "en",
    most: int = 100,
    matched: float | None = None,
) -> tuple[Path, Path]:
    """
    Writes `listings.html` and `listings.csv`.

    Args:
        folder (`str` or `Path`): Folder for both; made where it is missing.
        listings (`Sequence[Listing]`): Of
            [`~fusionmatch.evaluation.mismatches.suspicious_listings`], the worst first.
        intake ([`~fusionmatch.catalogue.Intake`]): The catalogue; `listings` are rows of its dataset.
        catalogue (`str`): Its name.
        language (`str`, *optional*, defaults to `"en"`): `en` or `ja`.
        most (`int`, *optional*, defaults to 100): Listings on the page; the table has all.
        matched (`float`, *optional*): Where probabilities of a calibrated model took part, the share of pairs that it
            takes to belong together.

    Returns:
        `tuple[Path, Path]`: page and table.

    Raises:
        `ValueError`: there is no such language.
    """
    t, folder = Words(language), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = intake.dataset
    names = ("source_row", "image_id", "product", "texts")
    rows, ids, products, texts = (list(dataset[name]) for name in names)
    pictures = dataset.select_columns(["image"])

    def place(row: int) -> str:
        return t("place", file=intake.files[row], row=rows[row])

    def shown(row: int) -> dict[str, Any]:
        image = shown_picture(pictures[row]["image"])
        return {"image": image, "caption": products[row], "place": place(row), "right": False}

    entries = [
        {
            "share": f"{listing.share:.0%}",
            "probability": None if listing.probability is None else f"{listing.probability:.0%}",
            "swapped": None if listing.swapped_with is None else place(listing.swapped_with),
            "own": shown(listing.row),
            "text": shortened(texts[listing.row][0]),
            "fits": [{"shown": shown(row), "text": shortened(texts[row][0])} for row in listing.fits],
        }
        for listing in listings[:most]
    ]
    more = t("listings_shown", shown=most, file=LISTINGS_TABLE) if len(listings) > most else ""
    intro = t(
        "listings_intro_calibrated" if matched else "listings_intro",
        count=f"{len(listings):,}",
        rows=f"{len(dataset):,}",
        threshold=f"{SUSPICIOUS:.0%}",
    )
    title = t("listings_title", catalogue=catalogue)
    page = folder / LISTINGS_PAGE
    content = (
        environment()
        .get_template("listings.html")
        .render(t=t, title=title, intro=intro, matched=matched and f"{matched:.0%}", listings=entries, more=more)
    )
    page.write_text(content, encoding="utf-8")

    table = folder / LISTINGS_TABLE
    # The byte order mark makes spreadsheets read Japanese as what it is.
    with table.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for listing in listings:
            row, best = listing.row, listing.fits[0] if listing.fits else None
            swapped = listing.swapped_with
            cells = [
                *(intake.files[row], rows[row], ids[row], products[row], texts[row][0], f"{listing.share:.3f}"),
                *(("", "") if best is None else (ids[best], texts[best][0])),
                "" if swapped is None else ids[swapped],
                "" if listing.probability is None else f"{listing.probability:.3f}",
            ]
            writer.writerow(map(for_spreadsheet, cells))
    return page, table
