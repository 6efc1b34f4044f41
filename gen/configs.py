# SPDX-License-Identifier: Apache-2.0
"""A block's parameters out of a preset, a YAML file and ``name=value`` words, in this order."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rtl.config import Config, ConfigError
from ..rtl.errors import unknown
from .blocks import Block

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Choice:
    """A config and how it was asked for; ``arguments`` are the words that ask for it again."""

    preset: str
    config: Config
    arguments: tuple[str, ...]


def choose(
    block: Block,
    preset: str | None = None,
    settings: Sequence[str] = (),
    file: Path | None = None,
) -> Choice:
    """The config that preset, ``file`` and ``settings`` (``name=value``, the value YAML) describe.

    The file is a mapping of parameters, with or without a ``preset``; ``preset`` goes before the
    file's, and settings before the file's parameters.  :class:`ConfigError` names the place at
    fault: the file or the command line.
    """
    kind = block.config
    known = [field.name for field in dataclasses.fields(kind)]
    in_file = _mapping(file) if file else {}
    file_preset = in_file.pop("preset", None)
    name = preset or file_preset or "default"
    if name not in kind.presets and name != "default":
        place = COMMAND_LINE if preset else str(file)
        raise ConfigError(f"{place}: {unknown('preset', str(name), kind.presets)}")
    if file:
        _check_names(in_file, known, str(file))
    given = settings_of(settings)
    _check_names(given, known, COMMAND_LINE)

    base = kind.presets.get(name, {})
    config = _made(kind, {**base, **in_file, **given}, base, in_file, file)
    words = ["--preset", preset] if preset else []
    words += ["--config", str(file)] if file else []
    words += [word for setting in settings for word in ("--set", setting)]
    return Choice(name, config, tuple(words))


def settings_of(words: Iterable[str], flag: str = "--set") -> dict[str, Any]:
    """What ``name=value`` words after ``flag`` set, the values read as YAML."""
    return dict(_setting(word, flag) for word in words)


def parameters(words: Iterable[str], file: Path | None = None) -> dict[str, Any]:
    """What ``file``, a mapping of parameters, sets, and ``name=value`` words before it."""
    return {**(_mapping(file) if file else {}), **settings_of(words)}


def _made(
    kind: type[Config],
    values: Mapping[str, Any],
    base: Mapping[str, Any],
    in_file: Mapping[str, Any],
    file: Path | None,
) -> Config:
    """The config; where it cannot be, the file is to blame unless it would do by itself."""
    try:
        return kind.of(values)
    except ConfigError as error:
        place = COMMAND_LINE
        if file:
            try:
                kind.of({**base, **in_file})
            except ConfigError:
                place = str(file)
        raise ConfigError(f"{place}: {error}") from None


def _check_names(names: Iterable[Any], known: Sequence[str], place: str) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{place}: {unknown('parameter', str(name), known)}")


def _setting(word: str, flag: str = "--set") -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"{COMMAND_LINE}: {flag} takes name=value, not {word!r}")
    return name.strip(), _yaml(text, f"{COMMAND_LINE}: value of {name.strip()}")


def _mapping(file: Path) -> dict[Any, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {(error.strerror or 'cannot be read').lower()}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text at byte {error.start}") from None
    values = _yaml(text, str(file))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: must be a mapping of parameters, not {type(values).__name__}")
    return values


def _yaml(text: str, place: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or "a character that YAML does not allow"
        raise ConfigError(f"{place}: not valid YAML{where}: {what}") from None
