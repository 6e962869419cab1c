"""A YAML file of keys and values, read so that every error names file, line and key, and what was expected."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dexcore.data.sources.globs import matcher
from dexcore.data.sources.recipe import RecipeError
from dexcore.extras import require

_MAX_BYTES = 1 << 20


class Fields:
    """The keys of a mapping in a YAML file, with their lines."""

    def __init__(self, path: Path, inside: str, pairs: list[tuple[str, Any]], lines: dict[str, int]) -> None:
        self.path, self.inside, self.pairs, self.lines = path, inside, pairs, lines

    @classmethod
    def read(cls, path: Path) -> "Fields":
        yaml = require("yaml", "train")
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise RecipeError(f"{path}: more than {_MAX_BYTES} bytes, expected a few lines")
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path}: is no UTF-8 text") from error
        try:
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            if node is None:
                return cls(path, "", [], {})
            return cls.of(path, "", loader, node)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise RecipeError(f"{path}{line}: is no YAML: {getattr(error, 'problem', None) or error}") from error
        except RecursionError:
            raise RecipeError(f"{path}: is nested too deeply") from None

    @classmethod
    def of(cls, path: Path, inside: str, loader: Any, node: Any) -> "Fields":
        yaml = require("yaml", "train")
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{path}, line {node.start_mark.line + 1}: expected keys with values, as modality: X-ray")
        pairs: list[tuple[str, Any]] = []
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            line = key_node.start_mark.line + 1
            if key in lines:
                raise RecipeError(f"{path}, line {line}: {inside}{key} stands there twice, first in line {lines[key]}")
            lines[key] = line
            if isinstance(value_node, yaml.MappingNode):
                value: Any = cls.of(path, f"{inside}{key}.", loader, value_node)
            else:
                value = loader.construct_object(value_node, deep=True)
            pairs.append((key, value))
        return cls(path, inside, pairs, lines)

    def error(self, key: str, problem: str) -> RecipeError:
        return RecipeError(f"{self.path}, line {self.lines[key]}: {self.inside}{key} {problem}")

    def parse(self, key: str, parser: Callable[[Any], Any]) -> Any:
        """Parse a key's value; what the parser says of it comes with the file, the line and the key."""
        try:
            return parser(dict(self.pairs)[key])
        except RecipeError:
            raise
        except ValueError as error:
            raise self.error(key, str(error)) from error

    def parse_all(self, parsers: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
        """Parse every key by its parser; a key without one is refused, with the nearest that there is."""
        for key, _ in self.pairs:
            if key not in parsers:
                close = difflib.get_close_matches(key, parsers, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise self.error(key, f"is no key: expected one of {', '.join(parsers)}{hint}")
        return {key: self.parse(key, parsers[key]) for key, _ in self.pairs}

    def only(self, *keys: str) -> dict[str, Any]:
        """The values of exactly these keys: texts, or lists of texts."""
        found = dict(self.pairs)
        for key in found:
            if key not in keys:
                raise self.error(key, f"is no key: expected {' and '.join(keys)}")
        for key in keys:
            if key not in found:
                raise ValueError(f"lacks {key}: expected {' and '.join(keys)}")
        return {key: self.parse(key, text_values if key == "column" else text_value) for key in keys}

    def __repr__(self) -> str:
        return "{" + ", ".join(key for key, _ in self.pairs) + "}"


def text_value(value: Any) -> str:
    """A text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"is {value!r}, expected a text")
    return value


def name_value(value: Any) -> str:
    """A name: printable, and short."""
    text = text_value(value)
    if not text.isprintable() or len(text) > 100:
        raise ValueError(f"is {text!r}, expected a name of at most 100 printable characters")
    return text


def one_of(*words: str) -> Callable[[Any], str]:
    """A parser of one of some words."""

    def parse(value: Any) -> str:
        if value not in words:
            close = difflib.get_close_matches(str(value), words, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"is {value!r}, expected one of {', '.join(words)}{hint}")
        return str(value)

    return parse


def text_values(value: Any) -> tuple[str, ...]:
    """One text, or a list of texts."""
    if value == []:
        raise ValueError("is an empty list, expected one or more texts")
    return tuple(text_value(one) for one in (value if isinstance(value, list) else [value]))


def glob_values(value: Any) -> tuple[str, ...]:
    """One pattern, or a list of patterns (`globs.matcher`)."""
    texts = text_values(value)
    matcher(texts)
    return texts


def yes_value(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"is {value!r}, expected true or false")
    return value


def whole_number(least: int) -> Callable[[Any], int]:
    """A parser of a whole number that is not less."""

    def parse(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"is {value!r}, expected a whole number of at least {least}")
        return value

    return parse
