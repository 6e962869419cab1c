"""The page's parts as HTML. Nothing in them is fetched from anywhere, and nothing runs."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from dexcore.report.pictures import Picture
from dexcore.report.style import CSS


def document(title: str, body: Iterable[str]) -> str:
    """A whole page; ``body`` is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def figure(picture: Picture) -> str:
    """A picture with its heading and its caption, the PNG inside."""
    data = base64.b64encode(picture.png).decode()
    found = f'<p class="found">{escape(picture.found)}</p>\n' if picture.found else ""
    detail = f'\n<details class="detail"><summary>In detail</summary>{escape(picture.detail)}</details>'
    detail = detail if picture.detail else ""
    return (
        f"<h3>{escape(picture.title)}</h3>\n<figure>\n"
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{found}{escape(picture.reading)} <b>Bad:</b> {escape(picture.bad)}{detail}</figcaption>\n"
        "</figure>"
    )


def folded(title: str, parts: Iterable[str]) -> str:
    """HTML that a tap on its title unfolds."""
    return f"<details>\n<summary>{escape(title)}</summary>\n" + "\n".join(parts) + "\n</details>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts; each row's first is its heading. A cell may have several lines."""
    top = "".join(f"<th>{_lines(text)}</th>" for text in head)
    lines = [
        f"<tr><th>{escape(label)}</th>" + "".join(f"<td>{_lines(text)}</td>" for text in cells) + "</tr>"
        for label, *cells in rows
    ]
    return f"<table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def scrolled(part: str) -> str:
    """HTML that is scrolled sideways where it is wider than the page."""
    return f'<div class="wide">{part}</div>'


def tile(name: str, pictures: Sequence[str], lines: Sequence[str]) -> str:
    """One small image of a `strip`, or two or three that belong together, with lines of text.

    Args:
        name: of the image, told by hovering and to screen readers.
        pictures: JPEG as base64.
        lines: below it, the first of them in the text's colour.
    """
    images = "".join(
        f'<img alt="{escape(name)}" title="{escape(name)}" src="data:image/jpeg;base64,{escape(data)}">'
        for data in pictures
    )
    text = "<br>".join(
        f'<span class="found">{escape(line)}</span>' if number == 0 else escape(line)
        for number, line in enumerate(lines)
    )
    kind = ("tile", "tile pair", "tile three")[min(len(pictures), 3) - 1]
    return f'<figure class="{kind}"><div>{images}</div><figcaption>{text}</figcaption></figure>'


def strip(tiles: Iterable[str]) -> str:
    """Small images side by side, in as many columns as there is room for."""
    return '<div class="strip">\n' + "\n".join(tiles) + "\n</div>"


def mapping(name: object, value: object) -> str:
    """One paragraph of a configuration: a name and its value or values."""
    shown = "; ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else str(value)
    return f"<p><b>{escape(str(name))}</b> {escape(shown)}</p>"
