"""From a command line and YAML files to a `PretrainConfig`.

The last word wins: the preset (or, with ``--resume``, what the run's folder holds), then ``--config FILE``,
then the flags.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import dexcore
from dexcore.extras import require
from dexcore.report.files import CONFIG_FILE
from dexcore.train.config import PRESETS, ConfigError, PretrainConfig, flat, shown


def parse(argv: Sequence[str] | None = None, program: str | None = None) -> PretrainConfig | None:
    """Read a command line (default: this process's); None where it only asked for ``--print-config``.

    ``program`` is the command's name in help and errors; the script's by default.

    Raises:
        ConfigError: a file or a flag is wrong; the message names the field.
        SystemExit: ``--help`` was asked for, or a flag does not exist.
    """
    tyro = require("tyro", "train")
    argv = list(sys.argv[1:] if argv is None else argv)
    base = _base(argv)

    def arguments(
        config_fields: Annotated[PretrainConfig, tyro.conf.arg(name="")] = base,
        preset: Literal["laptop", "paper"] = "laptop",
        config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
        print_config: bool = False,
    ) -> tuple[PretrainConfig, bool]:
        """Pre-train a Director-Experts masked autoencoder on medical images.

        Values: the preset's (with --resume the run folder's), then --config, then flags.

        See what a run needs by --dry-run. Under torchrun several processes share it.

        Args:
            config_fields: the run.
            preset: where the other values come from: minutes on two CPU cores, or the paper's recipe.
            config: a YAML file with fields to change, as --print-config writes it.
            print_config: show the resulting configuration as YAML and leave.
        """
        return config_fields, print_config

    config, print_config = tyro.cli(arguments, prog=program, args=argv)
    if print_config:
        print(to_yaml(config), end="")
        return None
    return config


def _base(argv: Sequence[str]) -> PretrainConfig:
    """What the flags change: it has to be known before they are read."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", choices=sorted(PRESETS))
    early.add_argument("--config", type=Path)
    early.add_argument("--out", default="")
    early.add_argument("--resume", action="store_true")
    try:
        known, _ = early.parse_known_args(argv)
    except argparse.ArgumentError:
        return PRESETS["laptop"]  # tyro meets the same mistake and explains it
    base = PRESETS[known.preset or "laptop"]
    changes = {} if known.config is None else _load_yaml(known.config)
    out = known.out or (changes.get("out") if isinstance(changes, dict) else None) or base.out
    stored = Path(out if isinstance(out, str) else base.out) / CONFIG_FILE
    if known.resume and known.preset is None and stored.is_file():
        base = read_yaml(stored, PretrainConfig())  # a field that its version did not know: as that version did
    return base if known.config is None else _apply(base, changes, known.config)


def to_yaml(config: PretrainConfig) -> str:
    """The configuration as YAML that `read_yaml` reads."""
    yaml = require("yaml", "train")
    plain = asdict(config, dict_factory=lambda items: {k: list(v) if isinstance(v, tuple) else v for k, v in items})
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text


def read_yaml(path: str | Path, base: PretrainConfig) -> PretrainConfig:
    """``base`` with the fields that a YAML file names.

    Raises:
        ConfigError: the file cannot be read, is no mapping, names a field that does not exist, names one twice,
            or holds a value of another type or out of range; the message names the file and the field.
    """
    return _apply(base, _load_yaml(path), path)


def _load_yaml(path: str | Path) -> object:
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


def _apply(base: PretrainConfig, values: object, path: str | Path) -> PretrainConfig:
    try:
        updated: PretrainConfig = _updated(base, values, "")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return updated


def _updated(base: Any, values: object, prefix: str) -> Any:
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
                f"{_nearest(called, list(new), prefix)}"
            )
        if is_dataclass(new[key]):
            new[key] = _updated(new[key], value, f"{prefix}{key}.")
        else:
            new[key] = _converted(value, hints[key])
    return type(base)(**new)


def _nearest(key: str, siblings: list[str], prefix: str) -> str:
    everywhere = [name for name, _ in flat(PretrainConfig()) if name.rpartition(".")[2] == key]
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
