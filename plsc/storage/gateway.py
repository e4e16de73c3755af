"""Authentication at gateways: a password goes only to those that ask for it over https."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase, HTTPBasicAuth


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
        response.content  # noqa: B018 - reads it, so that the connection can be used again
        response.close()
        again = request.copy()
        self._basic(again)
        answer = response.connection.send(again, **options)  # type: ignore[attr-defined]
        answer.history.append(response)
        answer.request = again
        return answer
