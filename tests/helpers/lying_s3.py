"""An S3 server that lies or refuses, on the loopback interface.

with LyingS3() as server:
    server.keys = ["source/../x"]
    server.refusal = (403, "AccessDenied")
    server.url, server.strangers  # what the server to which it redirects has received
"""

from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from lying_server import TwoServers


class LyingS3(TwoServers):
    """A server of one bucket, and the one to which it redirects.

    Attributes:
        keys: What every listing holds; those that end in `/` are folders.
        size: The size that it gives of each file.
        body: The bytes of every file.
        refusal: Status and code of the answer to every request, or None.
        redirect: The status with which it redirects all requests to the other server, or None.
        kept: The code with which it refuses to remove each file of a list, or None.
        store: A place for a store that tests share; `reset` leaves it alone.
        cut: Whether it closes the connection in the middle of a file.
    """

    def __init__(self):
        super().__init__()
        self.store = None
        self.reset()

    def reset(self):
        """Has it tell the truth about an empty bucket."""
        self.keys, self.size, self.body, self.refusal, self.redirect, self.cut = [], 1, b"x", None, None, False
        self.kept = None
        self.strangers.clear()

    def _listing(self, query):
        prefix, parts = query.get("prefix", [""])[0], []
        for key in self.keys:
            if key.endswith("/") and query.get("delimiter"):
                parts.append(f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>")
            else:
                parts.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                    f'<ETag>"1"</ETag><Size>{self.size}</Size></Contents>'
                )
        return (
            f"<ListBucketResult><Name>bucket</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(parts)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(parts)}</ListBucketResult>"
        )

    def _handler(self, own):
        lying = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                url = urlsplit(self.path)
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                key = unquote(url.path).removeprefix("/bucket").lstrip("/")
                if not own:
                    lying.strangers.append((self.command, self.path, dict(self.headers)))
                elif lying.redirect:
                    return self.reply(lying.redirect, location=lying.stranger + self.path)
                elif lying.refusal:
                    status, code = lying.refusal
                    text = f"<Error><Code>{code}</Code><Message>No: {code}</Message></Error>"
                    return self.reply(status, text.encode())
                if lying.kept and self.command == "POST":
                    errors = f"<Error><Key>x</Key><Code>{lying.kept}</Code><Message>No</Message></Error>"
                    return self.reply(200, f"<DeleteResult>{errors}</DeleteResult>".encode())
                if "list-type" in url.query:
                    return self.reply(200, lying._listing(parse_qs(url.query)).encode())
                if self.command == "HEAD":
                    known = not key or key in lying.keys
                    return self.reply(200 if known else 404, length=lying.size if key else 0)
                if self.command == "GET":
                    return self.reply(206, lying.body, length=2 * len(lying.body) if lying.cut else None)
                return self.reply(200)

            do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = answer  # noqa: N815 - the library's names

            def reply(self, status, body=b"", location=None, length=None):
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.send_header("ETag", '"1"')
                self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
                if location:
                    self.send_header("Location", location)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                if lying.cut and body:
                    self.close_connection = True

            def log_message(self, *arguments):
                pass

        return Handler
