"""Fills a `Config`: what a setter of the script changes, and what the user's settings override."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, Optional

from plsc.config import Config
from plsc.errors import ConfigError, one_line, shown
from plsc.settings.table import SETTINGS


def change(config: Config, name: str, *arguments: Any, **named: Any) -> Optional[str]:
    """Does what the setter of a setting does, unless an override has set one of the fields it would change.

    The arguments are checked in both cases.

    Returns:
        The override that won, as the user wrote it, when the setter would have changed anything; otherwise None.

    Raises:
        ConfigError: An argument cannot work.
    """
    values = SETTINGS[name].values(*arguments, **named)
    locks = {field: words for key, words in config.overrides.items() for field in SETTINGS[key].fields}
    won = next((locks[field] for field in values if field in locks), None)
    if won is not None:
        return None if all(_same(getattr(config, field), value) for field, value in values.items()) else won
    for field, value in values.items():
        setattr(config, field, value)
    config.given |= set(values)
    return None


def override(config: Config, name: str, value: Any, words: str) -> None:
    """Sets what wins over the setters of a script, and over earlier overrides.

    Args:
        config: The settings to change.
        name: A name of the table.
        value: The value, as YAML spells it.
        words: How the user wrote both, such as `--set lr=0.05`. Messages show it.

    Raises:
        ConfigError: There is no such setting, or the value cannot work.
    """
    check_name(name, words.partition("=")[0].removesuffix(name).strip())  # the value may be a password
    try:
        values = SETTINGS[name].spread(value)
    except ConfigError as problem:
        raise ConfigError(f"{words}: {problem}") from None
    for field, one in values.items():
        setattr(config, field, one)
    config.given |= set(values)
    config.overrides[name] = words


def override_all(config: Config, settings: Mapping[str, Any], source: str = "") -> None:
    """Overrides several settings, by name, that come from `source`, such as `--set`.

    Raises:
        ConfigError: There is no such setting, or a value cannot work.
    """
    if not isinstance(settings, Mapping) or not all(isinstance(name, str) for name in settings):
        raise ConfigError(f"{source or 'settings'}: expected a mapping of names and values, such as {{'lr': 0.05}}")
    for name, value in settings.items():
        text = one_line(value) if isinstance(value, str) else _as_text(value)
        override(config, name, value, f"{source} {name}={text}".strip())


def _as_text(value: Any) -> str:
    try:
        return one_line(json.dumps(value, default=str))
    except Exception:  # as for `shown`
        return shown(value)


# What other programs call these settings.
_SYNONYMS = {
    "batch_size": "train_batch_size",
    "classes": "num_classes",
    "data_dir": "dataset_dir",
    "embedding_size": "emb_dim",
    "epochs": "train_epochs",
    "learning_rate": "lr",
    "output_dir": "model_save_dir",
    "save_dir": "model_save_dir",
    "workers": "num_workers",
}


def known_words(has_text: bool = True) -> dict[str, str]:
    """Returns the words that users know settings by, each with the name of its setting.

    These are the names, the setters without `set_`, and what other programs call them.

    Args:
        has_text: Whether to leave out the settings that only a script can set.
    """
    known: dict[str, str] = {}
    for one in SETTINGS.values():
        if one.has_text or not has_text:
            known[one.setter.removeprefix("set_")] = known[one.name] = one.name
    return {**known, **_SYNONYMS}


def nearest_setter(word: str) -> Optional[str]:
    """Returns the setter that `word` probably means; None if there is none like it."""
    known = known_words(has_text=False)
    alike = difflib.get_close_matches(word.removeprefix("set_"), known, 1)
    return SETTINGS[known[alike[0]]].setter if alike else None


def check_name(name: str, where: str) -> None:
    """Checks that a setting of this name can be given as text.

    Raises:
        ConfigError: It cannot. The message begins with `where` and suggests the name that was probably meant.
    """
    if name in SETTINGS and SETTINGS[name].has_text:
        return
    where = f"{where}: " if where else ""
    if name in SETTINGS:
        raise ConfigError(f"{where}{name!r} is set in the script only, by {SETTINGS[name].setter}")
    known = known_words()
    alike = difflib.get_close_matches(name.removeprefix("set_"), known, 1)
    hint = (
        f"did you mean {known[alike[0]]!r}?"
        if alike
        else f"the settings are {', '.join(dict.fromkeys(known.values()))}"
    )
    raise ConfigError(f"{where}{name!r} is not a setting; {hint}")


def make_config(settings: Mapping[str, Any]) -> Config:
    """Returns the defaults with the given settings, without an `Entry`.

    Raises:
        ConfigError: There is no such setting, or a value cannot work.
    """
    config = Config()
    override_all(config, settings)
    return config


def _same(old: Any, new: Any) -> bool:
    """Tells whether two values are the same, without comparing the contents of objects such as models."""
    return old is new or (type(old) is type(new) and type(old).__eq__ is not object.__eq__ and bool(old == new))
