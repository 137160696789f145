"""Who may ask: this page in a browser of this machine, and whoever has the token.

A page of another site can make the user's browser send requests to this machine. Three things keep it out: the name in
`Host` must be one of ours, which a name that was rebound to 127.0.0.1 is not; `Origin` must be our own; and what
changes something needs a header that browsers let no other site send.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWN_HEADER = "x-swintormer"
_SAFE = ("GET", "HEAD")
_HEADERS = {
    # Nothing comes from elsewhere, and nothing stays in a cache.
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """ASGI middleware that answers what is not allowed, and adds headers of privacy to all else.

    Args:
        host: address that is listened at.
        token: must have been shown once, as `?token=`, by everyone who asks; empty for none.
    """

    def __init__(self, app: ASGIApp, host: str, token: str = "") -> None:
        self.app, self.token = app, token
        self.everywhere = not is_loopback(host)
        self.names = {"localhost", "127.0.0.1", "::1", host.lower()}
        if self.everywhere:
            own = socket.gethostname().lower()
            self.names |= {own, f"{own}.local", f"{own.partition('.')[0]}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope)
        answer = self._refusal(request) or self._entrance(request)
        await (answer or self.app)(scope, receive, sealed)

    def _refusal(self, request: Request) -> Response | None:
        headers = request.headers
        if not self._is_own_name(headers):
            return PlainTextResponse("This address is not known here: open the one that the program printed.", 400)
        origin, own = headers.get("origin"), f"http://{headers['host']}".lower()
        if origin is not None and origin.lower() != own:
            return _no("Another site may not ask this program.")
        if request.url.path != "/" and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return _no("Another site may not ask this program.")
        if request.method not in _SAFE and OWN_HEADER not in headers:
            return _no(f"The header {OWN_HEADER} is missing.")
        return None

    def _is_own_name(self, headers: Headers) -> bool:
        try:
            name = urlsplit(f"http://{headers.get('host', '')}").hostname or ""
            if name in self.names:
                return True
            # A number cannot be rebound. Which ones this machine has, only the network knows.
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.everywhere

    def _entrance(self, request: Request) -> Response | None:
        """Ask for the token, and take it from the address into a cookie, so that it stays in no history."""
        if not self.token:
            return None
        cookie = f"swintormer-{request.url.port or 80}"  # cookies are shared by all ports
        shown = parse_qs(request.url.query).get("token", [""])[0]
        if request.url.path == "/" and self._is_token(shown):
            answer: Response = RedirectResponse("/", 303)
            answer.set_cookie(cookie, self.token, httponly=True, samesite="strict")
            return answer
        try:
            kept = SimpleCookie(request.headers.get("cookie", "")).get(cookie)
        except CookieError:
            kept = None
        if kept is not None and self._is_token(kept.value):
            return None
        return _no("Open the address that the program printed: it holds the token.")

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())


def _no(sentence: str) -> Response:
    return JSONResponse({"error": sentence}, 403)
