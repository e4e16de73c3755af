"""Credentials of WebHDFS: they go to the servers that the user has named, and to no other."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import hdfs
import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth

from plsc.storage.kerberos import Kerberos

CONNECTIONS = 128  # as many as `plsc.storage.transfer` has threads
_MOST_REDIRECTS = 5


class NoAuth(AuthBase):
    """Sends no credentials, not even those of ~/.netrc."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Returns the request as it is."""
        return request


class GatewayAuth(AuthBase):
    """Basic authentication for the gateways of `urls` that ask for it over https. DataNodes never see the password."""

    def __init__(self, name: str, password: str, urls: Iterable[str]) -> None:
        self._basic = HTTPBasicAuth(name.encode(), password.encode()) if password else None
        self._gateways = {urlsplit(url).netloc for url in urls if url.startswith("https://")}
        self._asked: set[str] = set()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Adds the password for a gateway that has asked for it, and prepares to answer one that may ask."""
        if self._basic is not None and request.url and request.url.startswith("https://"):
            gateway = urlsplit(request.url).netloc
            if gateway in self._asked:
                self._basic(request)
            elif gateway in self._gateways:
                request.register_hook("response", self._answer)
        return request

    def _answer(self, response: requests.Response, **options: Any) -> requests.Response:
        request, gateway = response.request, urlsplit(response.url).netloc
        asks = response.status_code == 401 and "basic" in response.headers.get("www-authenticate", "").lower()
        is_ours = response.url.startswith("https://") and gateway in self._gateways
        if not asks or not is_ours or self._basic is None or "Authorization" in request.headers:
            return response
        self._asked.add(gateway)
        again = request.copy()
        self._basic(again)
        return _sent_again(response, again, options)


class TicketAuth(AuthBase):
    """Shows a Kerberos ticket to those servers of `urls` that ask for one (SPNEGO). DataNodes never see one."""

    def __init__(self, kerberos: Kerberos, urls: Iterable[str]) -> None:
        self._kerberos, self._servers = kerberos, {_origin(url) for url in urls}

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Prepares to answer a server that asks."""
        if _origin(str(request.url)) in self._servers:
            request.register_hook("response", self._answer)
        return request

    def _answer(self, response: requests.Response, **options: Any) -> requests.Response:
        asks = response.status_code == 401 and "negotiate" in response.headers.get("www-authenticate", "").lower()
        is_ours = _origin(response.url) in self._servers
        if not asks or not is_ours or "Authorization" in response.request.headers:
            return response
        token = self._kerberos.token(str(urlsplit(response.url).hostname))
        again = response.request.copy()
        again.headers["Authorization"] = f"Negotiate {base64.b64encode(token).decode()}"
        return _sent_again(response, again, options)


class KeptCredentials:
    """What sends the requests of a client, and sends those to other servers than its own without its credentials.

    A NameNode redirects reading and writing to a DataNode, which may be any host that it names. The password, token,
    cookies and headers of the client's session are for the NameNode alone: what a DataNode needs is in the address to
    which it redirects.

    Args:
        client: The client. The proxies and certificates of its session are used for all servers.
    """

    def __init__(self, client: hdfs.client.Client) -> None:
        self._request, self._timeout = client._request, client._timeout
        self._own = {_origin(url) for url in client.urls}
        self._plain = requests.Session()
        self._plain.auth = NoAuth()
        self._plain.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session = client._session
        self._plain.verify, self._plain.cert, self._plain.proxies = session.verify, session.cert, session.proxies
        self._plain.trust_env = session.trust_env
        for scheme in ("http://", "https://"):
            self._plain.mount(scheme, HTTPAdapter(pool_connections=CONNECTIONS, pool_maxsize=CONNECTIONS))

    def __call__(self, method: str, url: str, allow_redirects: bool = True, **options: Any) -> requests.Response:
        """Sends a request and follows redirects, as the client would."""
        for _ in range(_MOST_REDIRECTS):
            answer = self._send(method, url, options)
            onward = answer.next if allow_redirects else None
            if onward is None:
                return answer
            answer.close()
            method, url = str(onward.method), str(onward.url)
            options.pop("params", None)  # the new address has its own
        raise requests.TooManyRedirects(f"more than {_MOST_REDIRECTS} redirects")

    def _send(self, method: str, url: str, options: dict[str, Any]) -> requests.Response:
        if _origin(url) in self._own:
            return self._request(method, url, allow_redirects=False, **options)
        return self._plain.request(
            method,
            url,
            allow_redirects=False,
            headers={"content-type": "application/octet-stream"},  # for HttpFS
            timeout=self._timeout,
            **options,
        )


def keep_credentials(client: hdfs.client.Client) -> None:
    """Has a client send its credentials to its own servers alone."""
    if not isinstance(client._request, KeptCredentials):
        client._request = KeptCredentials(client)


def _sent_again(
    response: requests.Response, request: requests.PreparedRequest, options: dict[str, Any]
) -> requests.Response:
    """Returns the answer to another form of a request that has been refused."""
    response.content  # noqa: B018 - reads it, so that the connection can be used again
    response.close()
    answer = response.connection.send(request, **options)  # type: ignore[attr-defined]
    answer.history.append(response)
    answer.request = request
    return answer


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
