"""Configurations as YAML files."""

import difflib
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import dexcore
from dexcore.engine.config import ConfigError, flat, shown
from dexcore.extras import require

C = TypeVar("C")  # a dataclass


def to_yaml(config: Any) -> str:
    """The configuration as YAML that `read_yaml` reads."""
    yaml = require("yaml", "train")
    plain = asdict(config, dict_factory=lambda items: {k: list(v) if isinstance(v, tuple) else v for k, v in items})
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text


def read_yaml(path: str | Path, base: C) -> C:
    """``base`` with the fields that a YAML file names.

    Raises:
        ConfigError: the file cannot be read, is no mapping, names a field that does not exist, names one twice,
            or holds a value of another type or out of range; the message names the file and the field.
    """
    return apply(base, load_yaml(path), path)


def load_yaml(path: str | Path) -> object:
    """What a YAML file holds, for `apply`; an empty one no field.

    Raises:
        ConfigError: it cannot be read, or names a field twice.
    """
    yaml = require("yaml", "train")
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        root = loader.get_single_node()
        _refuse_repetition(root, path)
        values = None if root is None else loader.construct_document(root)
    except ConfigError:
        raise
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as a YAML file: {error}") from error
    except Exception as error:  # what PyYAML does not foresee: !!bool maybe, a date's month 13, a thousand brackets
        raise ConfigError(f"{path}: cannot be read as a YAML file: {type(error).__name__}: {error}") from error
    return {} if values is None else values


def _refuse_repetition(root: Any, path: str | Path) -> None:
    """Raise ConfigError where a mapping holds a key twice: PyYAML would take the last in silence."""
    pending, met = [("", root)], set()
    while pending:
        prefix, node = pending.pop()
        if getattr(node, "id", None) != "mapping" or id(node) in met:  # an alias may lead back to its own mapping
            continue
        met.add(id(node))
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if key.id != "scalar":
                continue  # no field, as is told later
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                first, name = lines[key.tag, key.value], prefix + shown(key.value)[1:-1]
                where = f"in lines {first} and {line}" if first != line else f"in line {line}"
                raise ConfigError(f"{path}: {name}: given twice, {where}")
            lines[key.tag, key.value] = line
            pending.append((f"{prefix}{key.value}.", value))


def apply(base: C, values: object, path: str | Path) -> C:
    """``base`` with the fields that ``values`` names; ``path`` is for messages."""
    try:
        updated: C = _updated(base, values, "", base)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return updated


def _updated(base: Any, values: object, prefix: str, root: Any) -> Any:
    """The dataclass ``base`` with ``values`` put in, checked by the types of its fields."""
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'the file'}: expected a mapping of fields, got {shown(values)}")
    hints = get_type_hints(type(base))
    new = {item.name: getattr(base, item.name) for item in fields(base)}
    for key, value in values.items():
        if key not in new:
            called = shown(key)[1:-1] if isinstance(key, str) else shown(key)
            raise ConfigError(
                f"{prefix}{called}: no such field in dexcore {dexcore.__version__}; "
                f"{_nearest(called, list(new), prefix, root)}"
            )
        if is_dataclass(new[key]):
            new[key] = _updated(new[key], value, f"{prefix}{key}.", root)
        else:
            new[key] = _converted(value, hints[key])
    return type(base)(**new)


def _nearest(key: str, siblings: list[str], prefix: str, root: Any) -> str:
    everywhere = [name for name, _ in flat(root) if name.rpartition(".")[2] == key]
    near = everywhere or [prefix + name for name in difflib.get_close_matches(key, siblings)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"{prefix.rstrip('.') or 'a configuration'} has {', '.join(siblings)}"


def _converted(value: Any, hint: Any) -> Any:
    """``value`` as the field's type where YAML writes it differently; the section refuses what is no such value."""
    if hint is float:
        # YAML 1.1 takes 1e-4 for a string: it wants a dot and a sign, 1.0e-4.
        number = _as_float(value)
        return value if number is None else number
    if isinstance(value, list):
        return tuple(value)
    return value


def _as_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
