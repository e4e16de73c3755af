"""A real S3 server on the loopback interface: that of `moto`, in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

from hdfs_server import free_ports

BUCKET = "bucket"
KEY, SECRET = "AKIATEST", "s3cret/of+the=tests"


class S3Server:
    """A server with an empty bucket. It keeps everything in memory.

    Attributes:
        url: Its address.
    """

    def __init__(self):
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *problem):
        self.kill()

    @property
    def environment(self):
        """What a client needs to know."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self):
        """Returns a client of boto3, which the storage does not use."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def start(self):
        """Starts the server and makes the bucket."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, "moto does not start"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        self.client().create_bucket(Bucket=BUCKET)

    def kill(self):
        """Kills the server; all its files are lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self):
        """Kills the server and starts it again, with the same files."""
        client = self.client()
        names = [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())]
        kept = {name: client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names}
        self.kill()
        self.start()
        for name, data in kept.items():
            client.put_object(Bucket=BUCKET, Key=name, Body=data)

    @contextmanager
    def hanging(self):
        """Has the server accept connections and answer none."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def unfinished(self):
        """Returns the names of the files with parts that no upload has put together."""
        return [one["Key"] for one in self.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]
