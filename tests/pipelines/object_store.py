"""An S3 server of its own: a process that speaks the protocol, with its data in memory, and ends with the tests.

    python -m tests.pipelines.object_store

prints its address, serves until its standard input ends, and notes each request on its standard error. Not a thread of
the tests: pyarrow may hold Python's lock while it waits for the server.
"""

import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from pyarrow import fs as pafs

ROOT = Path(__file__).parents[2]
KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "anything", "AWS_DEFAULT_REGION": "us-east-1"}
_REQUEST = re.compile(r'"(?:\x1b\[\d+m)*([A-Z]+) (\S+) HTTP')


class ObjectStore:
    """A running server, and a client that may make buckets."""

    def __init__(self, log):
        """Start it; its requests are noted in the file `log`."""
        self._log = log
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.pipelines.object_store"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), cwd=ROOT, text=True,
        )  # fmt: skip
        self.address = self._server.stdout.readline().strip()
        self.client = pafs.S3FileSystem(
            access_key=KEYS["AWS_ACCESS_KEY_ID"], secret_key=KEYS["AWS_SECRET_ACCESS_KEY"], region="us-east-1",
            scheme="http", endpoint_override=self.address, allow_bucket_creation=True,
        )  # fmt: skip

    def close(self):
        self._server.stdin.close()
        self._server.wait(30)

    def uri(self, path):
        """Of a path, with the server's address in it."""
        return f"s3://{path}?endpoint_override={self.address}&scheme=http"

    def bucket(self, name, folder=None):
        """Make a bucket, of the files of a local folder."""
        self.client.create_dir(name)
        if folder is not None:
            pafs.copy_files(str(folder), name, destination_filesystem=self.client)
        return name

    def put(self, path, data):
        with self.client.open_output_stream(path) as stream:
            stream.write(data)

    def files(self, path):
        """Every object below a prefix: its bytes by its name there."""
        found = self.client.get_file_info(pafs.FileSelector(path, recursive=True))
        objects = [info.path for info in found if info.is_file]
        return {name.removeprefix(f"{path}/"): self.client.open_input_file(name).read() for name in objects}

    def requests(self):
        """Method and path with query of every request so far."""
        return _REQUEST.findall(self._log.read_text())

    def ask_for_known_keys(self, after):
        """Refuse all keys, as none is known, after so many more requests."""
        asked = urllib.request.Request(
            f"http://{self.address}/moto-api/reset-auth", str(after).encode(), {"Content-Type": "text/plain"}
        )
        with urllib.request.urlopen(asked) as answer:
            answer.read()


def main():
    from moto.server import ThreadedMotoServer  # noqa: PLC0415

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print("{}:{}".format(*server.get_host_and_port()), flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
