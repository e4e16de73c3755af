"""A WebHDFS that lies, on loopback: it lists whatever it should, and redirects to a server that notes what it gets.

with LyingServer() as server:
    server.listed = [("..", 1, "FILE")]
    server.url  # the NameNode
    server.strangers  # what the other server has received: (method, path with query, headers)
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class TwoServers:
    """A server, and one that notes what strangers send to it; both run inside the `with` block.

    Attributes:
        url: The first.
        stranger: The other.
        strangers: What the other has received.
    """

    def __init__(self):
        self.strangers = []
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(own)) for own in (True, False)]
        self.url, self.stranger = (f"http://127.0.0.1:{one.server_port}" for one in self._servers)

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        for server in self._servers:
            server.shutdown()
            server.server_close()


class LyingServer(TwoServers):
    """A NameNode and the server to which it redirects.

    Attributes:
        listed: Name, size and type of what every folder holds.
        body: The bytes of every file.
        redirect: The status with which it redirects all requests to the other server; None does so for bytes alone.
    """

    def __init__(self):
        super().__init__()
        self.listed, self.body, self.redirect = [], b"x", None

    def _handler(self, own):
        lying = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                url = urlsplit(self.path)
                operation = parse_qs(url.query).get("op", [""])[0]
                if not own:
                    lying.strangers.append((self.command, self.path, dict(self.headers)))
                    if self.headers.get("Transfer-Encoding") == "chunked":
                        while (size := int(self.rfile.readline(), 16)) or self.rfile.readline() != b"\r\n":
                            self.rfile.read(size + 2)
                elif lying.redirect or operation in ("OPEN", "CREATE"):
                    bytes_of = f"{lying.stranger}{url.path}?op={operation}"
                    return self.reply(lying.redirect or 307, location=bytes_of)
                if operation == "OPEN":
                    return self.reply(200, lying.body)
                if operation == "LISTSTATUS":
                    statuses = [status(*one) for one in lying.listed]
                    return self.reply(200, {"FileStatuses": {"FileStatus": statuses}})
                if operation == "GETFILESTATUS":
                    name = unquote(url.path).rpartition("/")[2]
                    found = {one[0]: one for one in lying.listed}.get(name, ("", 0, "DIRECTORY"))
                    return self.reply(200, {"FileStatus": status(*found)})
                return self.reply(200, {"boolean": True})

            do_GET = do_PUT = do_DELETE = answer  # noqa: N815 - the library's names

            def reply(self, code, content=b"", location=None):
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Set-Cookie", "hadoop.auth=c00kie; path=/")
                if location:
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        return Handler


def status(name, size, kind):
    """Returns a status as WebHDFS gives it."""
    return {"pathSuffix": name, "length": size, "type": kind, "modificationTime": 1}
