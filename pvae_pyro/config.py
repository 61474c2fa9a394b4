"""A TOML file to the parts of a fit, and back: tables [story], [guide] and [fit]; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from pvae_pyro.errors import InputError

if TYPE_CHECKING:
    from pvae_pyro.inference import FitSettings
    from pvae_pyro.story import PerturbedVAE

AUTO = "auto"
"""How a file writes None, "left to the program": TOML has no null."""

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


@dataclass(frozen=True)
class Config:
    """What `fit` is given: the model, the guide and the settings of the fit."""

    model: PerturbedVAE
    guide: Any
    settings: FitSettings


def load_config(path: str | Path | None = None) -> Config:
    """Read a configuration; what a file leaves out, and all of it without a file, has its default.

    Raises InputError for a file that cannot be read and for an unknown or unfit table, key, name or value.
    """
    if path is None:
        return from_dict({})
    try:
        tables = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(
            f"the configuration {str(path)!r} cannot be read ({type(problem).__name__}); give a TOML file."
        ) from None
    except tomllib.TOMLDecodeError as problem:
        raise InputError(
            f"the configuration {str(path)!r} is no valid TOML ({str(problem).rstrip('.')}); mend it."
        ) from None
    return from_dict(tables, origin=str(path))


def from_dict(tables: Mapping[str, Any], origin: str = "the configuration") -> Config:
    """A configuration from tables as TOML gives them; the inverse of `to_dict`. Raises InputError."""
    from pvae_pyro.guides import GUIDES, Amortized
    from pvae_pyro.inference import FitSettings
    from pvae_pyro.story import PARTS, PerturbedVAE

    _refuse_unknown(tables, ("story", "guide", "fit"), f"{origin} has the unknown table", "tables")
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise InputError(
                f"{origin}: {name} must be a table, found {table!r}; write [{name}] above its keys."
            )
    story = dict(tables.get("story", {}))
    known = [field.name for field in dataclasses.fields(PerturbedVAE)]
    _refuse_unknown(story, known, f"{origin}: [story] has the unknown key", "keys")
    given = {key: story.pop(key) for key in PARTS if key in story}
    parts = {
        key: named(value, PARTS[key], f"{origin}: [story] {key}")
        for key, value in given.items()
        if (key, value) != ("loadings", AUTO)  # the one part that a story may be without
    }
    guide = dict(tables.get("guide", {}))
    return Config(
        model=build(PerturbedVAE, story, f"{origin}: [story]", parts),
        guide=named(guide, GUIDES, f"{origin}: [guide]") if guide else Amortized(),
        settings=build(FitSettings, tables.get("fit", {}), f"{origin}: [fit]"),
    )


def to_dict(config: Config) -> dict[str, Any]:
    """Every setting of a configuration, defaults included, as tables that TOML and JSON can hold."""
    from pvae_pyro.guides import GUIDES
    from pvae_pyro.story import PARTS

    story: dict[str, Any] = {}
    for field in dataclasses.fields(config.model):
        value = getattr(config.model, field.name)
        is_part = field.name in PARTS and value is not None
        story[field.name] = _described(value, PARTS[field.name]) if is_part else _plain(value)
    return {"story": story, "guide": _described(config.guide, GUIDES), "fit": settings_of(config.settings)}


def to_toml(tables: Mapping[str, Any]) -> str:
    """Tables of scalars, lists of scalars and further tables as TOML text; `tomllib` reads back the same."""
    lines: list[str] = []
    _write_table(tables, (), lines)
    return "\n".join(lines).strip() + "\n"


def build(cls: type, table: Mapping[str, Any], where: str, ready: Mapping[str, Any] | None = None) -> Any:
    """An instance of a dataclass from a table of scalars; `ready` holds fields that are already objects.

    Raises InputError, naming `where`, for an unknown key or a value of the wrong kind or out of range.
    """
    hints = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls) if field.init]
    _refuse_unknown(table, known, f"{where} has the unknown key", "keys")
    values = {key: _fitted(value, hints[key], f"{where} {key}") for key, value in table.items()}
    try:
        return cls(**values, **(ready or {}))
    except ValueError as problem:  # InputError among them: the class knows its own limits
        raise InputError(f"{where}: {problem}") from None


def named(value: Any, choices: Mapping[str, type], where: str) -> Any:
    """One of several dataclasses: its name, or a table of its `name` and settings. Raises InputError.

    A field with the metadata {"part": True} holds one of the same dataclasses, and is given in the same way.
    """
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise InputError(
            f"{where} must be a name or a table, found {value!r}; the names are {_list(choices)}."
        )
    if "name" not in table:
        raise InputError(f"{where} has no name; add name = one of {_list(choices)}.")
    name = table["name"]
    if not isinstance(name, str) or name not in choices:
        raise InputError(f"{where} is {name!r}, which is unknown; the known names are {_list(choices)}.")
    settings, here = {key: one for key, one in table.items() if key != "name"}, f"{where} {name!r}"
    inner = [key for key in _inner_parts(choices[name]) if key in settings]
    ready = {key: named(settings.pop(key), choices, f"{here} {key}") for key in inner}
    return build(choices[name], settings, here, ready)


def settings_of(part: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values, None as "auto"."""
    return {field.name: _plain(getattr(part, field.name)) for field in dataclasses.fields(part) if field.init}


def _described(part: Any, choices: Mapping[str, type]) -> dict[str, Any]:
    name = next(name for name, cls in choices.items() if type(part) is cls)
    inner = {key: _described(getattr(part, key), choices) for key in _inner_parts(type(part))}
    return {"name": name, **settings_of(part), **inner}


def _inner_parts(cls: type) -> list[str]:
    """Names of the fields that hold a part themselves."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata.get("part")]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return AUTO if value is None else value


def _refuse_unknown(table: Mapping[str, Any], known: Sequence[str], what: str, kind: str) -> None:
    for key in table:
        if key not in known:
            raise InputError(f"{what} {key!r}; the known {kind} are {_list(known)}.")


def _list(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _fitted(value: Any, hint: Any, where: str) -> Any:
    """The value as the field's type wants it; bool is no number, a whole number is a number, too."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in options and value == AUTO:
        return None
    for option in options:
        fits, converted = _try(value, option, where)
        if fits:
            return converted
    raise InputError(f"{where} must be {' or '.join(map(_wanted, options))}, found {value!r}; correct it.")


def _try(value: Any, option: Any, where: str) -> tuple[bool, Any]:
    if get_origin(option) is Literal:
        return any(value == one and type(value) is type(one) for one in get_args(option)), value
    if get_origin(option) is tuple and isinstance(value, list | tuple):
        kinds = get_args(option)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return True, tuple(_fitted(one, kind, where) for one, kind in zip(value, kinds, strict=True))
        return False, None
    if option is float and type(value) in (int, float):
        try:
            number = float(value)
        except OverflowError:
            return False, None
        return not math.isnan(number), number
    return option in _NAMES and type(value) is option, value


def _wanted(option: Any) -> str:
    if get_origin(option) is Literal:
        return _list(get_args(option))
    if get_origin(option) is tuple:
        return "a list"
    return repr(AUTO) if option is type(None) else _NAMES.get(option, "something that no file can hold")


def _write_table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    scalars = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    if path and (scalars or not table):
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in scalars.items()]
    for key, value in table.items():
        if isinstance(value, Mapping):
            _write_table(value, (*path, key), lines)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
    return key if bare else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # TOML's basic strings are JSON's, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"{type(value).__name__} cannot be written as TOML")
