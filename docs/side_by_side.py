"""Draws docs/pictures/side_by_side.svg: python docs/side_by_side.py.

The two scripts of a first training, plain Keras beside hyparflow, line by line; the line that
differs is marked in both. Written as SVG by hand, for it is text: sharp at any size, the same on
every machine, and compared with the scripts by a test. Each line is given its length, so that any
fixed-width font fits.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent
PICTURE = FOLDER / "pictures" / "side_by_side.svg"
SIDES = (
    ("digits_plain.py", "Plain Keras", "python train.py"),
    ("digits_hyparflow.py", "hyparflow", "mpirun -n 2 python train.py"),
)
CALL = ".fit("  # in the line that is marked

LETTER, LINE = 7.3, 18.0  # width and height of a letter, in units of the picture
SIZE = 12.15  # of the font: fixed-width letters are 0.6 of it wide
PAD, HEAD = 12.0, 30.0
COLUMNS = 58  # letters of the longest line
FONTS = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
INK, FAINT, PAPER, FRAME, MARK = "#1f2328", "#59636e", "#ffffff", "#d1d9e0", "#fff3bf"


def side_by_side(left: list[str], right: list[str]) -> list[tuple[str, str]]:
    """The lines of both, equal ones beside each other."""
    pairs: list[tuple[str, str]] = []
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for _, start, end, other, last in matcher.get_opcodes():
        here, there = left[start:end], right[other:last]
        size = max(len(here), len(there))
        pairs += zip(filled(here, size), filled(there, size), strict=True)
    return pairs


def filled(lines: list[str], size: int) -> list[str]:
    return lines + [""] * (size - len(lines))


def text(x: float, y: float, line: str, colour: str = INK, weight: str = "normal") -> str:
    """A line of text at its place; its spaces at the left are kept by moving it."""
    shown = line.lstrip()
    x += LETTER * (len(line) - len(shown))
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" textLength="{LETTER * len(shown):.1f}" fill="{colour}" '
        f'font-weight="{weight}">{escape(shown)}</text>'
    )


def panel(left: float, height: float, title: str, command: str, lines: list[str]) -> list[str]:
    """One script with its title above and its command below."""
    width = COLUMNS * LETTER + 2 * PAD
    parts = [
        f'<rect x="{left:.1f}" y="0.5" width="{width:.1f}" height="{height - 1:.1f}" rx="6" '
        f'fill="{PAPER}" stroke="{FRAME}"/>',
        text(left + PAD, HEAD - 9, title, weight="bold"),
        f'<path d="M{left:.1f} {HEAD:.1f}h{width:.1f}" stroke="{FRAME}"/>',
    ]
    top = HEAD + LINE
    for number, line in enumerate(lines):
        y = top + number * LINE
        if CALL in line:
            parts.append(
                f'<rect x="{left + 1:.1f}" y="{y - LINE + 5:.1f}" width="{width - 2:.1f}" '
                f'height="{LINE:.1f}" fill="{MARK}"/>'
            )
        if line:
            parts.append(text(left + PAD, y, line, weight="bold" if CALL in line else "normal"))
    bottom = top + len(lines) * LINE
    parts.append(f'<path d="M{left:.1f} {bottom - 8:.1f}h{width:.1f}" stroke="{FRAME}"/>')
    return [*parts, text(left + PAD, bottom + 11, f"$ {command}", FAINT)]


def picture() -> str:
    """The whole file."""
    scripts = [(FOLDER / "scripts" / name).read_text().splitlines() for name, _, _ in SIDES]
    columns = list(zip(*side_by_side(*scripts), strict=True))
    width = COLUMNS * LETTER + 2 * PAD
    height = HEAD + LINE * (len(columns[0]) + 1) + 22
    whole = 2 * width + PAD + 1
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole:.1f} {height:.1f}" '
        f'width="{whole:.1f}" height="{height:.1f}" font-family="{FONTS}" font-size="{SIZE}">',
        "<title>A script for plain Keras beside one for hyparflow</title>",
    ]
    for number, ((_, title, command), column) in enumerate(zip(SIDES, columns, strict=True)):
        lines += panel(0.5 + number * (width + PAD), height, title, command, list(column))
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture())
