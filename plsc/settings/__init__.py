"""The settings of a training: one table of them, and how scripts, the command line and YAML files give them.

The table is `plsc.settings.table`, which holds one record per setting. `Entry`'s setters call `change`; `--set`,
`--config` and `Entry(settings=...)` call `override`, which wins over the setters.
"""

from plsc.settings.apply import change, make_config, nearest_setter, override, override_all
from plsc.settings.options import add_options, from_environment, read_options, to_environment
from plsc.settings.table import GROUPS, SETTINGS, Setting

__all__ = [
    "GROUPS",
    "SETTINGS",
    "Setting",
    "add_options",
    "change",
    "from_environment",
    "make_config",
    "nearest_setter",
    "override",
    "override_all",
    "read_options",
    "to_environment",
]
