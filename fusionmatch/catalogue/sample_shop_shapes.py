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
"""Outlines of the things in the sample shop, in object coordinates: -1 to 1, x to the right, y down."""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np


# Points are written as in "0,-.5 .3,-.2! .3,.6": x,y pairs, with an exclamation mark behind each corner.
Points = list[tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Part:
    """
    A piece of a product.

    Attributes:
        outline (`numpy.ndarray`): (n, 2) polygon, or a polyline where `line_width` is set.
        paint (`str`): `"main"` (colour, pattern, material), `"plain"` (no pattern), `"dark"`, `"inside"`, a fixed
            paint of the drawing module, or, for lines, `"seam"` or `"stitch"`, which darken or lighten.
        relief (`float`): how far in from its edge the piece is rounded.
        form (`str`): `"soft"` like a pillow, `"turned"` like a thing from the potter's wheel.
        folds (`float`): how much of the shape's folds the piece shows.
        line_width (`float`): 0 for a filled piece.
    """

    outline: np.ndarray
    paint: str = "main"
    relief: float = 0.10
    form: Literal["soft", "turned"] = "soft"
    folds: float = 1.0
    line_width: float = 0.0


@dataclass(frozen=True, eq=False)
class Shape:
    """A product: its pieces from back to front, where it stands, where a close-up looks, how deep its folds are."""

    parts: tuple[Part, ...]
    standing: bool
    focus: tuple[float, float] = (0.0, 0.0)
    folds: float = 0.0
    ground: float = 0.8


def _points(text: str) -> Points:
    """The points of a text; a corner gets a third coordinate."""
    return [(*map(float, pair.rstrip("!").split(",")), *[0.0] * pair.endswith("!")) for pair in text.split()]


def _curve(points: Points | str, closed: bool = True) -> np.ndarray:
    """Smooth curve through points (Catmull-Rom); one with a third coordinate, of any value, is a corner."""
    points = _points(points) if isinstance(points, str) else points
    at = np.array([point[:2] for point in points], dtype=np.float64)
    tangents = (np.roll(at, -1, axis=0) - np.roll(at, 1, axis=0)) / 2 if closed else np.gradient(at, axis=0)
    tangents[[len(point) == 3 for point in points]] = 0
    t = np.linspace(0, 1, 14, endpoint=False)[:, None]
    pieces = []
    for i in range(len(points) if closed else len(points) - 1):
        j = (i + 1) % len(points)
        pieces.append(
            (2 * t**3 - 3 * t**2 + 1) * at[i]
            + (t**3 - 2 * t**2 + t) * tangents[i]
            + (3 * t**2 - 2 * t**3) * at[j]
            + (t**3 - t**2) * tangents[j]
        )
    return np.concatenate(pieces if closed else [*pieces, at[-1:]])


def _both(text: str) -> np.ndarray:
    """Outline symmetric about x = 0 from its right half, top to bottom; end points on the axis are not doubled."""
    points = _points(text)
    left = [(-point[0], *point[1:]) for point in reversed(points) if point[0] != 0]
    return _curve(points + left)


def _mirrored(part: Part) -> tuple[Part, Part]:
    """A piece on the right and its twin on the left."""
    twin = Part(part.outline * [-1, 1], part.paint, part.relief, part.form, part.folds, part.line_width)
    return part, twin


def _tube(points: str, width: float, end_width: float | None = None) -> np.ndarray:
    """Outline of a bent tube along an open curve, from `width` to `end_width`."""
    line = _curve(points, closed=False)
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    # Next to corners the curve slows down to rest, where its direction is that of its neighbours.
    side = np.c_[-along[:, 1], along[:, 0]] * np.linspace(width, end_width or width, len(line))[:, None] / 2
    return np.concatenate([line + side, (line - side)[::-1]])


def _oval(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return np.c_[x + rx * np.cos(t), y + ry * np.sin(t)]


def _line(points: Points | str, width: float, paint: str = "seam") -> Part:
    return Part(_curve(points, closed=False), paint, relief=width / 2, line_width=width)


def _shirt() -> Shape:
    sleeve = _curve(".42,-.66! .62,-.58 .75,-.4 .9,-.08! .66,.03! .46,-.2!")
    body = _both("0,-.55 .13,-.6 .22,-.75! .47,-.64! .48,-.25 .48,.2 .51,.74! 0,.77")
    neck = "-.22,-.74 -.13,-.6 0,-.55 .13,-.6 .22,-.74"
    return Shape(
        (
            Part(_oval(0, -0.68, 0.19, 0.12), "inside", 0.03),
            *_mirrored(Part(sleeve, relief=0.09)),
            *_mirrored(_line(".66,-.015 .88,-.12", 0.012)),
            Part(body, relief=0.09),
            Part(_tube(neck, 0.05), "plain", 0.03, folds=0),
            _line("-.49,.7 0,.73 .49,.7", 0.012),
        ),
        standing=False,
        focus=(0.05, -0.15),
        folds=1.0,
    )


def _hoodie() -> Shape:
    sleeve = ".38,-.58! .57,-.48 .69,-.18 .78,.3 .81,.52! .62,.55! .56,.25 .43,-.12!"
    body = "0,-.58 .24,-.62 .43,-.55! .46,-.2 .45,.3 .47,.64! 0,.66"
    return Shape(
        (
            *_mirrored(Part(_curve(sleeve), relief=0.1)),
            *_mirrored(Part(_curve(".81,.5! .8,.63! .65,.66! .62,.53!"), "plain", 0.04)),
            Part(_both(body), relief=0.11),
            Part(_both("0,.63 .47,.61! .44,.76! 0,.78"), "plain", 0.05),
            Part(_both("0,.16 .19,.16! .32,.4! .32,.58! 0,.59"), relief=0.035, folds=0.6),
            Part(_both("0,-.9 .24,-.85 .35,-.66 .27,-.5 0,-.38"), relief=0.1),
            Part(_both("0,-.8 .16,-.75 .21,-.62 .12,-.5 0,-.44"), "inside", 0.06),
            *_mirrored(Part(_tube(".1,-.46 .13,-.28 .11,-.1", 0.022), "cream", 0.012)),
        ),
        standing=False,
        focus=(0.0, 0.15),
        folds=1.0,
    )


def _trousers() -> Shape:
    leg = "-.01,-.76! .34,-.78! .41,-.45 .42,0 .39,.8! .13,.82! .1,.25 -.01,-.2!"
    return Shape(
        (
            *_mirrored(Part(_curve(leg), relief=0.11)),
            *_mirrored(_line(".2,-.73 .24,-.6 .37,-.54", 0.016)),
            *_mirrored(_line(".14,.76 .385,.745", 0.012)),
            _line("0,-.74 .06,-.52 0,-.4", 0.012),
            _line("0,-.75 0,-.22", 0.014),
            Part(_both("0,-.84 .335,-.86! .345,-.74! 0,-.72"), "plain", 0.03, folds=0),
            *_mirrored(Part(_curve(".19,-.86! .225,-.862! .225,-.725! .19,-.725!"), "dark", 0.015)),
            Part(_oval(0.0, -0.785, 0.026, 0.026), "brass", 0.02),
        ),
        standing=False,
        focus=(0.2, -0.45),
        folds=0.9,
    )


def _dress() -> Shape:
    skirt = "0,-.14 .235,-.14! .38,.25 .6,.76! .42,.83 .2,.8 0,.84"
    bodice = "0,-.5 .13,-.58 .17,-.82! .25,-.82! .31,-.5! .26,-.3 .235,-.12! 0,-.11"
    return Shape(
        (
            Part(_both("0,-.62 .15,-.68 .18,-.8! .2,-.5! 0,-.46"), "inside", 0.03),
            Part(_both(skirt), relief=0.09, folds=2.2),
            Part(_both(bodice), relief=0.08, folds=0.6),
            Part(_both("0,-.17 .238,-.175! .242,-.085! 0,-.08"), "dark", 0.03, folds=0),
            _line("-.58,.72 -.4,.785 -.2,.755 0,.79 .2,.755 .4,.785 .58,.72", 0.01),
        ),
        standing=False,
        focus=(0.0, 0.2),
        folds=1.0,
    )


def _sneaker() -> Shape:
    upper = "-.8,.3! -.8,-.05 -.72,-.36! -.5,-.3 -.24,-.36! .02,-.14 .35,.02 .68,.08 .82,.3!"
    laces = [
        _line([(x - 0.10, y + 0.10), (x - 0.02, y + 0.03), (x + 0.03, y - 0.015)], 0.04, "cream")
        for x, y in ((-0.17, -0.28), (-0.06, -0.195), (0.05, -0.12), (0.17, -0.06))
    ]
    return Shape(
        (
            Part(_curve("-.56,-.28! -.36,-.52 -.22,-.5 .1,-.06! -.3,0!"), "dark", 0.05),
            Part(_curve(upper), relief=0.13),
            Part(_curve("-.805,.3! -.805,-.05 -.73,-.36! -.62,-.33! -.6,0 -.52,.3!"), "dark", 0.05),
            Part(_curve(".46,.3! .52,.12 .62,.05 .78,.12 .84,.3!"), "rubber", 0.08),
            Part(_curve("-.34,-.14! -.22,-.32! .26,.02! .2,.12!"), "plain", 0.025),
            *laces,
            _line("-.4,.24 -.16,.04 -.06,0", 0.012, "stitch"),
            Part(_curve("-.84,.27! .86,.25! .88,.37 .78,.44! -.78,.44! -.87,.38"), "rubber", 0.05),
            _line("-.85,.385 .86,.375", 0.014),
        ),
        standing=True,
        focus=(-0.2, 0.05),
        ground=0.42,
    )


def _boot() -> Shape:
    upper = "-.54,-.8! -.04,-.8! -.02,-.3 .07,-.02 .36,.12 .58,.3 .6,.56! -.54,.58! -.52,.15 -.56,-.35"
    return Shape(
        (
            Part(_curve("-.36,-.78! -.35,-.92 -.25,-.92 -.24,-.78!"), "dark", 0.02),
            Part(_curve(upper), relief=0.16),
            Part(_oval(-0.29, -0.80, 0.25, 0.05), "inside", 0.02),
            Part(_curve("-.36,-.7! -.16,-.7! -.19,-.2 -.24,-.08 -.32,-.2"), "dark", 0.02),
            _line("-.53,.22 -.3,.16 -.12,.32 -.08,.55", 0.014),
            _line(".1,.02 .16,.25 .12,.54", 0.014),
            Part(_curve("-.57,.55! .63,.53! .64,.62 .58,.66! -.12,.66! -.15,.78! -.56,.78!"), "black", 0.04),
        ),
        standing=True,
        focus=(-0.05, 0.1),
        ground=0.77,
    )


def _cap() -> Shape:
    crown = "-.66,.2! -.66,-.18 -.4,-.5 -.04,-.56 .3,-.42 .46,-.04 .44,.16! -.1,.27"
    visor = "-.02,.22! .2,.1 .44,.02! .74,.12 .92,.3 .84,.38 .52,.33 .2,.32"
    return Shape(
        (
            Part(_curve(crown), relief=0.26, folds=0.5),
            _line("-.05,-.55 .13,-.25 .17,.21", 0.014),
            _line("-.07,-.55 -.34,-.3 -.4,.24", 0.014),
            Part(_curve(visor), "plain", 0.07, folds=0),
            _line(".06,.24 .3,.16 .5,.13 .72,.2 .84,.31", 0.01),
            Part(_oval(-0.05, -0.565, 0.055, 0.03), "dark", 0.03),
            Part(_oval(-0.16, -0.22, 0.018, 0.018), "dark", 0.01),
        ),
        standing=True,
        focus=(-0.1, -0.12),
        folds=0.5,
        ground=0.27,
    )


def _tote() -> Shape:
    body = "-.56,-.2! .56,-.2! .53,.4 .55,.78! 0,.81 -.55,.78! -.53,.4"
    handle = "-.26,-.14 -.27,-.5 -.16,-.8 .16,-.8 .27,-.5 .26,-.14"
    behind = "-.22,-.16 -.22,-.42 -.12,-.68 .12,-.68 .22,-.42 .22,-.16"
    return Shape(
        (
            Part(_tube(behind, 0.07), "dark", 0.03),
            Part(_curve(body), relief=0.10),
            Part(_curve("-.56,-.205! .56,-.205! .555,-.12! -.555,-.12!"), "plain", 0.025, folds=0),
            Part(_tube(handle, 0.075), "dark", 0.03),
            *_mirrored(Part(_curve(".215,-.17! .305,-.17! .305,.02! .215,.02!"), "dark", 0.02)),
        ),
        standing=True,
        focus=(0.0, 0.2),
        folds=0.9,
        ground=0.79,
    )


def _backpack() -> Shape:
    body = "0,-.72 .36,-.66 .5,-.36 .53,.25 .5,.68 .36,.8 0,.81"
    return Shape(
        (
            Part(_tube("-.13,-.66 -.11,-.86 .11,-.86 .13,-.66", 0.055), "dark", 0.025),
            *_mirrored(Part(_tube(".4,-.5 .62,-.2 .64,.3 .5,.66", 0.10), "dark", 0.04)),
            *_mirrored(Part(_curve(".46,.18! .6,.24 .62,.6 .46,.72!"), "dark", 0.05)),
            Part(_both(body), relief=0.17),
            Part(_tube("-.44,.06 -.43,-.34 -.28,-.56 0,-.61 .28,-.56 .43,-.34 .44,.06", 0.028), "ink", 0.012),
            Part(_both("0,.12 .32,.12 .4,.24 .4,.6 .32,.7 0,.71"), relief=0.09),
            Part(_tube("-.36,.22 0,.205 .36,.22", 0.028), "ink", 0.012),
            Part(_curve(".27,.215! .3,.215! .305,.33! .265,.33!"), "steel", 0.015),
            Part(_curve("-.11,-.36! .11,-.36! .11,-.24! -.11,-.24!"), "dark", 0.02),
        ),
        standing=True,
        focus=(0.0, 0.1),
        folds=0.4,
        ground=0.79,
    )


def _mug() -> Shape:
    body = "-.52,-.5! .38,-.5! .375,.2 .34,.52 .2,.62 -.07,.645 -.34,.62 -.48,.52 -.515,.2"
    handle = ".34,-.3 .58,-.34 .76,-.14 .72,.16 .54,.34 .33,.36"
    return Shape(
        (
            Part(_tube(handle, 0.12, 0.10), "plain", 0.06),
            Part(_curve(body), relief=0.12, form="turned"),
            Part(_oval(-0.07, -0.50, 0.452, 0.115), "plain", 0.03),
            Part(_oval(-0.07, -0.492, 0.405, 0.09), "inside", 0.08),
        ),
        standing=True,
        focus=(-0.05, 0.1),
        ground=0.64,
    )


def _vase() -> Shape:
    body = "0,-.8 .2,-.8! .15,-.66 .16,-.5 .36,-.22 .47,.1 .42,.44 .26,.72 .23,.8! 0,.83"
    return Shape(
        (
            Part(_both(body), relief=0.12, form="turned"),
            Part(_oval(0, -0.80, 0.205, 0.05), "plain", 0.02),
            Part(_oval(0, -0.797, 0.165, 0.034), "inside", 0.03),
        ),
        standing=True,
        focus=(0.0, 0.1),
        ground=0.81,
    )


def _lamp() -> Shape:
    foot = "0,-.1 .04,-.1! .05,.02 .17,.2 .22,.4 .14,.62 .07,.7 .22,.76 .24,.82! 0,.84"
    return Shape(
        (
            Part(_both(foot), "timber", 0.06, form="turned"),
            Part(_oval(0, -0.09, 0.52, 0.06), "inside", 0.02),
            Part(_both("0,-.85 .3,-.82! .545,-.1! .3,-.045 0,-.03"), relief=0.05, form="turned"),
            _line("-.3,-.8 0,-.83 .3,-.8", 0.022),
            _line("-.535,-.12 -.3,-.068 0,-.052 .3,-.068 .535,-.12", 0.022),
        ),
        standing=True,
        focus=(0.0, -0.42),
        ground=0.82,
    )


def _chair() -> Shape:
    return Shape(
        (
            *_mirrored(Part(_tube(".33,.15 .36,.66", 0.06, 0.035), "timber", 0.03, form="turned")),
            *_mirrored(Part(_tube(".28,-.2 .3,.1", 0.05), "timber", 0.03, form="turned")),
            Part(_both("0,-.86 .32,-.83 .44,-.66 .42,-.3 .34,-.16 0,-.13"), relief=0.11),
            _line("-.37,-.66 -.35,-.32 -.28,-.22 0,-.2 .28,-.22 .35,-.32 .37,-.66", 0.01),
            *_mirrored(Part(_tube(".44,.2 .5,.82", 0.075, 0.04), "timber", 0.03, form="turned")),
            Part(_both("0,-.06 .4,-.06 .53,.1 .55,.24 .46,.3 0,.32"), relief=0.10),
            _line("-.545,.2 -.4,.225 0,.235 .4,.225 .545,.2", 0.012),
        ),
        standing=True,
        focus=(0.0, -0.45),
        ground=0.8,
    )


def _cushion() -> Shape:
    edge = _points("-.72,-.7! -.35,-.64 0,-.62 .35,-.64 .72,-.7! .66,-.35 .64,0 .66,.35")
    edge += [(-x, -y, *corner) for x, y, *corner in edge]
    return Shape(
        (
            Part(_curve(edge) * 1.02, "dark", 0.03, folds=0),
            Part(_curve(edge) * 0.98, relief=0.34),
        ),
        standing=False,
        focus=(0.1, 0.1),
        folds=0.5,
    )


def _umbrella() -> Shape:
    tips = _points("-.88,.06 -.53,.13 -.18,.16 .18,.16 .53,.13 .88,.06")
    scallops: Points = []
    for (x, y), (next_x, next_y) in itertools.pairwise(reversed(tips)):
        scallops += [(x, y, 0), ((x + next_x) / 2, (y + next_y) / 2 - 0.075)]
    dome = _points("-.88,.06! -.76,-.28 -.45,-.56 0,-.68 .45,-.56 .76,-.28")
    ribs = [_line([(0, -0.68), (x * 0.62, -0.42 + 0.1 * abs(x)), (x, y)], 0.014) for x, y in tips[1:-1]]
    return Shape(
        (
            Part(_both("0,-.02 .5,-.03 .82,.03! .5,.1 0,.13"), "inside", 0.05, folds=0),
            Part(_tube("0,-.8 0,.62", 0.034), "steel", 0.02, form="turned"),
            Part(_tube("0,.5 0,.7 -.05,.8 -.14,.8 -.18,.7", 0.066), "timber", 0.035),
            Part(_curve(dome + scallops), relief=0.20),
            *ribs,
            Part(_tube("0,-.82 0,-.66", 0.03, 0.06), "steel", 0.015, form="turned"),
        ),
        standing=False,
        focus=(0.1, -0.28),
        folds=0.0,
    )


def _watch() -> Shape:
    marks = [
        _line([(0.255 * np.sin(a), -0.255 * np.cos(a)), (0.30 * np.sin(a), -0.30 * np.cos(a))], 0.022, "ink")
        for a in np.arange(12) * np.pi / 6
    ]
    return Shape(
        (
            Part(_both("0,-.95 .19,-.95! .23,-.3! 0,-.2"), relief=0.07),
            Part(_both("0,.2 .23,.3! .18,.9 .1,.96 0,.97"), relief=0.07),
            *_mirrored(_line(".165,-.93 .2,-.4", 0.01, "stitch")),
            *_mirrored(_line(".2,.4 .165,.88", 0.01, "stitch")),
            *(Part(_oval(0, y, 0.018, 0.018), "ink", 0.01) for y in (0.62, 0.72, 0.82)),
            Part(_curve(".38,-.06! .46,-.05! .46,.05! .38,.06!"), "steel", 0.02),
            *_mirrored(Part(_curve(".14,-.44! .25,-.44! .32,-.2! .32,.2! .25,.44! .14,.44!"), "steel", 0.03)),
            Part(_oval(0, 0, 0.40, 0.40), "steel", 0.07),
            Part(_oval(0, 0, 0.335, 0.335), "cream", 0.02),
            *marks,
            _line(".02,.03 -.13,-.13", 0.032, "ink"),
            _line("-.02,.03 .13,-.22", 0.022, "ink"),
            Part(_oval(0, 0, 0.03, 0.03), "brass", 0.02),
        ),
        standing=False,
        focus=(0.0, -0.5),
        folds=0.0,
    )


SHAPES: dict[str, Shape] = {
    "T-shirt": _shirt(),
    "hoodie": _hoodie(),
    "trousers": _trousers(),
    "dress": _dress(),
    "sneaker": _sneaker(),
    "boot": _boot(),
    "cap": _cap(),
    "tote bag": _tote(),
    "backpack": _backpack(),
    "mug": _mug(),
    "vase": _vase(),
    "lamp": _lamp(),
    "chair": _chair(),
    "cushion": _cushion(),
    "umbrella": _umbrella(),
    "watch": _watch(),
}
