"""What messages of stores say to the author of a script, and what they say to the user of a command."""

from __future__ import annotations

import re
from collections.abc import Sequence

_IN_BOTH = (
    (r"set_hdfs_info: fs_name is empty", "the address is empty"),
    (r"set_hdfs_info: fs_name: ", ""),
    (r"set_hdfs_info: fs_name(?= holds| must)", "the address"),
    (r"give the folder as fs_dir_for_save or fs_checkpoint_dir", "give the folder as the path"),
    (r"give its full host name in fs_name", "give its full host name in the address"),
    (r"\bset_data_cache\b", "--set data_cache"),
)
_IN_OPTIONS = (
    (r"set_hdfs_info: fs_name: the alias", "--fs: the alias"),
    (r"set_hdfs_info: fs_name is empty", "--fs is empty"),
    (r"set_hdfs_info: keytab=", "--keytab "),
    (r"set_hdfs_info: (\w+:// takes no) fs_ugi; give None", r"\1 --user; leave it out"),
    (r"give them (in fs_ugi as 'name,password'|to set_hdfs_info as fs_ugi)",
     "give the name with --user, and the password with --ask-password"),
    (r"check fs_ugi; for Kerberos, call set_hdfs_info with auth='kerberos', or plsc fs with --kerberos; for a token, "
     r"give a client to set_hdfs_client", "check --user and the password; for Kerberos, give --kerberos"),
    (r"call set_hdfs_info with auth='kerberos', or plsc fs with --kerberos", "give --kerberos"),
    (r"leave out auth and keytab", "leave out --kerberos and --keytab"),
    (r"\(keytab= of set_hdfs_info, --keytab of plsc fs\)", "with --keytab"),
    (r"or give fs_ugi='(\w+),(\w+)'", r"or give the \1 with --user, and the \2 with --ask-password"),
    (r"give another name in fs_ugi", "give another name with --user"),
    (r", or give the server with set_hdfs_info", ""),
)  # fmt: skip
_KERBEROS = "let HADOOP_CONF_DIR name the folder of a core-site.xml that says so"
_IN_ENVIRONMENT = (
    (r"set_hdfs_info: (\w+:// takes no) fs_ugi; give None", r"\1 user and password"),
    (r"give them (in fs_ugi as 'name,password'|to set_hdfs_info as fs_ugi)",
     "set HADOOP_USER_NAME to the name, PLSC_HDFS_PASSWORD to the password, and PLSC_HDFS_HOST to its host"),
    (r"check fs_ugi; for Kerberos, call set_hdfs_info with auth='kerberos', or plsc fs with --kerberos; for a token, "
     r"give a client to set_hdfs_client",
     f"check HADOOP_USER_NAME, PLSC_HDFS_PASSWORD and PLSC_HDFS_HOST; for Kerberos, {_KERBEROS}"),
    (r"call set_hdfs_info with auth='kerberos', or plsc fs with --kerberos", _KERBEROS),
    (r"set_hdfs_info: (the alias .*); leave out auth and keytab, or give", r"\1; give"),
    (r"set_hdfs_info: auth and keytab are", "tickets of Kerberos are"),
    (r"set_hdfs_info: keytab=", "the keytab "),
    (r", or give a keytab \(keytab= of set_hdfs_info, --keytab of plsc fs\)", ""),
    (r", or give fs_ugi='\w+,\w+'", ""),
    (r"give another name in fs_ugi", "set HADOOP_USER_NAME to another name"),
    (r", or give the server with set_hdfs_info", ""),
)  # fmt: skip


def in_options(text: str) -> str:
    """Returns a message of a store in the words of `plsc fs`, whose options say who connects."""
    return _changed(text, (*_IN_OPTIONS, *_IN_BOTH))


def in_environment(text: str) -> str:
    """Returns a message of a store for the other commands, to which the environment says who connects."""
    return _changed(text, (*_IN_ENVIRONMENT, *_IN_BOTH))


def _changed(text: str, words: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in words:
        text = re.sub(pattern, replacement, text)
    return text
