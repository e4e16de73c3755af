"""A real KDC (MIT Kerberos, from Debian) for the tests, on a free port of loopback, and a HDFS that asks it.

with Kdc(folder) as kdc:
    kdc.add("alice")  # makes kdc.keytab("alice")
    kdc.kinit("alice", cache, lifetime="30s")
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import unittest.mock
from pathlib import Path

from hdfs_pairs import HdfsPair
from hdfs_server import HdfsServer, UnavailableError, free_ports

REALM = "PLSC.TEST"
HOST = "localhost"  # names of services contain it, so that addresses must use it too
_LIFETIME = 3000  # seconds after which a KDC ends that was not stopped
_PROGRAMS = {"krb5kdc": "krb5-kdc", "kdb5_util": "krb5-kdc", "kadmin.local": "krb5-admin-server", "kinit": "krb5-user"}
_COMPILING = {"krb5-config": "libkrb5-dev", "gcc": "gcc"}  # the package gssapi, for WebHDFS
_FOLDERS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


def missing_packages() -> list[str]:
    """Returns the Debian packages that are not installed, of a KDC and for the package gssapi."""
    return _missing({**_PROGRAMS, **_COMPILING})


def _missing(programs: dict[str, str]) -> list[str]:
    return sorted({package for program, package in programs.items() if shutil.which(program, path=_FOLDERS) is None})


class Kdc:
    """A key distribution centre of the realm PLSC.TEST.

    Args:
        folder: A new folder for its database and keytabs.

    Attributes:
        config: The path of krb5.conf, for `KRB5_CONFIG`.
    """

    def __init__(self, folder: Path) -> None:
        missing = _missing(_PROGRAMS)
        if missing:
            raise UnavailableError(f"not installed: Debian's {' '.join(missing)}")
        self.folder, self.config = folder, folder / "krb5.conf"
        (self._port,) = free_ports(1)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(
            f"[libdefaults]\ndefault_realm = {REALM}\ndns_lookup_kdc = false\ndns_lookup_realm = false\nrdns = false\n"
            "dns_canonicalize_hostname = false\nudp_preference_limit = 1\nkdc_timeout = 2s\nmax_retries = 1\n"
            "default_tkt_enctypes = aes128-cts\ndefault_tgs_enctypes = aes128-cts\npermitted_enctypes = aes128-cts\n"
            f"[realms]\n{REALM} = {{\nkdc = 127.0.0.1:{self._port}\n}}\n[domain_realm]\n{HOST} = {REALM}\n"
        )
        (folder / "kdc.conf").write_text(
            f'[kdcdefaults]\nkdc_ports = 0\nkdc_listen = ""\nkdc_tcp_listen = 127.0.0.1:{self._port}\n'
            f"[realms]\n{REALM} = {{\ndatabase_name = {folder}/principals\nkey_stash_file = {folder}/stash\n"
            "supported_enctypes = aes128-cts:normal\nmaster_key_type = aes128-cts\nmax_life = 1d\n}\n"
        )

    def __enter__(self) -> Kdc:
        self._run("kdb5_util", "create", "-s", "-r", REALM, "-P", "master")
        self._process = subprocess.Popen(
            ["timeout", str(_LIFETIME), shutil.which("krb5kdc", path=_FOLDERS), "-n", "-r", REALM],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return self
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError("the KDC did not start") from None
                time.sleep(0.05)

    def __exit__(self, *exception: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def environment(self, **more: str) -> dict[str, str]:
        """Returns the environment of a program that uses this KDC."""
        own = {"KRB5_CONFIG": str(self.config), "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"), "PATH": _FOLDERS}
        return {**os.environ, **own, **more}

    def keytab(self, name: str) -> Path:
        """Returns the path of the keytab of a principal."""
        return self.folder / f"{name.split('/')[0]}.keytab"

    def add(self, *names: str, lifetime: int = 3600) -> None:
        """Adds principals whose tickets live for some seconds, and writes the keytab of each."""
        options = f"-randkey -maxlife {lifetime}s"
        commands = [f"addprinc {options} {name}\nktadd -k {self.keytab(name)} {name}\n" for name in names]
        self._run("kadmin.local", "-r", REALM, input="".join(commands))
        assert all(self.keytab(name).exists() for name in names)

    def kinit(self, name: str, cache: Path, lifetime: str = "1h") -> None:
        """Writes a ticket of a principal to a file."""
        self._run("kinit", "-k", "-t", self.keytab(name), "-c", cache, "-l", lifetime, name)

    def _run(self, *command, **options) -> None:
        subprocess.run(command, check=True, env=self.environment(), capture_output=True, text=True, **options)


class SecureHdfs(HdfsServer):
    """A NameNode and a DataNode that ask for Kerberos, with encrypted transfer of data.

    Args:
        folder: A new folder for their data.
        kdc: The KDC, which runs.
    """

    def __init__(self, folder: Path, kdc: Kdc) -> None:
        self.kdc = kdc
        self._cache = kdc.folder / "administrator"
        self.java_options = (
            f"-Djava.security.krb5.conf={kdc.config}",
            "--add-exports=java.security.jgss/sun.security.jgss=ALL-UNNAMED",
        )
        kdc.add(f"nn/{HOST}", f"dn/{HOST}", f"HTTP/{HOST}")
        super().__init__(folder)

    @property
    def settings(self) -> Path:
        """The folder of core-site.xml and hdfs-site.xml, for `HADOOP_CONF_DIR`."""
        return self._settings

    def _open_root(self) -> None:
        import hdfs_native

        principal, keytab = f"nn/{HOST}@{REALM}", str(self.kdc.keytab("nn"))
        config = {"hadoop.security.authentication": "kerberos"}
        client = hdfs_native.Client(
            self._active_address(), config, kerberos_principal=principal, kerberos_keytab=keytab
        )
        client.set_permission("/", 0o777)

    def _active_address(self) -> str:
        return self.address

    def _java(self, kind: str, *arguments: str, name: str = "") -> str:
        """Runs a command of Hadoop with the ticket of an administrator."""
        self.kdc.kinit(f"nn/{HOST}", self._cache)
        with unittest.mock.patch.dict(os.environ, {"KRB5CCNAME": str(self._cache)}):
            return super()._java(kind, *arguments, name=name)

    def _set_addresses(self, ports) -> None:
        self.address, self.web = f"hdfs://{HOST}:{ports['rpc']}", f"http://{HOST}:{ports['web']}"

    def _core_settings(self) -> dict[str, object]:
        return super()._core_settings() | {
            "hadoop.security.authentication": "kerberos",
            "hadoop.security.authorization": "true",
            "hadoop.security.auth_to_local": "RULE:[2:$1](nn|dn|HTTP)s/.*/root/\nDEFAULT",
        }

    def _hdfs_settings(self, ports) -> dict[str, object]:
        settings = super()._hdfs_settings(ports)
        for kind in ("namenode", "datanode"):
            name = kind[0] + "n"
            settings[f"dfs.{kind}.kerberos.principal"] = f"{name}/{HOST}@{REALM}"
            settings[f"dfs.{kind}.keytab.file"] = self.kdc.keytab(name)
        return settings | {
            "dfs.namenode.http-address": f"{HOST}:{ports['web']}",
            "dfs.datanode.hostname": HOST,
            "dfs.web.authentication.kerberos.principal": f"HTTP/{HOST}@{REALM}",
            "dfs.web.authentication.kerberos.keytab": self.kdc.keytab("HTTP"),
            "dfs.block.access.token.enable": "true",
            "dfs.data.transfer.protection": "privacy",
            "ignore.secure.ports.for.testing": "true",
        }


class SecurePair(HdfsPair, SecureHdfs):
    """Two NameNodes that ask for Kerberos, of which one is active, and a DataNode."""

    _host = HOST

    def _active_address(self) -> str:
        return f"hdfs://{self.hosts[self.active]}"
