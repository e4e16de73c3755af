"""A gateway in front of HDFS, like Knox: TLS, basic authentication, and a data server. Everything is in memory."""

import base64
import json
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PREFIX = "/gateway/default/webhdfs/v1"


class Gateway:
    """A gateway and its data server, which run inside the `with` block.

    Args:
        credentials: The `name:password` that it asks for; or, for Kerberos, a function that says whether it accepts the
            Authorization header of a request.
        tls_folder: A folder for the certificate; without one it serves plain http.

    Attributes:
        url: The address.
        certificate: The file of the certificate.
        files: The content of each file by its path.
        seen: The (server, operation, Authorization header) of each request; the server is 'gateway' or 'data'.
    """

    def __init__(self, credentials, tls_folder=None):
        self.files, self.seen = {}, []
        self._accepts, self._scheme = credentials, "Negotiate"
        if isinstance(credentials, str):
            wanted = "Basic " + base64.b64encode(credentials.encode()).decode()
            self._accepts, self._scheme = wanted.__eq__, 'Basic realm="gateway"'
        self._data = self._server("data")
        self._gateway = self._server("gateway")
        scheme = "http"
        if tls_folder is not None:
            scheme, self.certificate = "https", tls_folder / "certificate.pem"
            key = tls_folder / "key.pem"
            subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
            files = ["-keyout", key, "-out", self.certificate]
            command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
            subprocess.run(command, check=True, capture_output=True)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, key)
            self._gateway.socket = context.wrap_socket(self._gateway.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self._gateway.server_port}/gateway/default"

    def __enter__(self):
        for server in (self._gateway, self._data):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception):
        for server in (self._gateway, self._data):
            server.shutdown()
            server.server_close()

    def _server(self, name):
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                url = urlsplit(self.path)
                operation = parse_qs(url.query)["op"][0]
                header = self.headers.get("Authorization")
                gateway.seen.append((name, operation, header))
                path = unquote(url.path)[len(PREFIX) :]
                if name == "data":
                    return gateway.serve_data(self, operation, path)
                if gateway._accepts(header) is not True:
                    return reply(self, 401, headers={"WWW-Authenticate": gateway._scheme})
                return gateway.serve_names(self, operation, path)

            do_GET = do_PUT = do_DELETE = answer  # noqa: N815 - the library's names

            def log_message(self, *arguments):
                pass

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def serve_names(self, handler, operation, path):
        if operation in ("CREATE", "OPEN"):
            place = f"http://127.0.0.1:{self._data.server_port}{handler.path}"
            return reply(handler, 307, headers={"Location": place})
        if operation == "GETFILESTATUS" and path in self.files:
            status = {"length": len(self.files[path]), "type": "FILE", "modificationTime": 0}
            return reply(handler, 200, {"FileStatus": status})
        problem = {"exception": "FileNotFoundException", "message": f"File does not exist: {path}"}
        return reply(handler, 404, {"RemoteException": problem})

    def serve_data(self, handler, operation, path):
        if operation == "OPEN":
            return reply(handler, 200, self.files[path])
        data = b""
        while True:
            size = int(handler.rfile.readline(), 16)
            data += handler.rfile.read(size)
            handler.rfile.readline()
            if not size:
                self.files[path] = data
                return reply(handler, 201)


def reply(handler, status, content=b"", headers=()):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **dict(headers)}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
