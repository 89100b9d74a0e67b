"""Reaching a cluster by the URL of its dashboard: the token, and whether the cluster asks for it."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8265"
_TIMEOUT_S = 10.0


class AccessError(ValueError):
    """A cluster that cannot be reached, or not safely; the message is one line that says what to do."""


def check_url(address: str) -> str:
    """The URL of a dashboard; empty takes RAY_API_SERVER_ADDRESS, then this machine's.

    Raises:
        AccessError: not such a URL.
    """
    url = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_URL).rstrip("/")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise AccessError(f"the address is {url!r}, wanted the dashboard's URL, such as {DEFAULT_URL}")
    if parts.username or parts.password:
        raise AccessError("the address holds a password, which would be logged: leave it out and use a token")
    return url


def find_token() -> str:
    """The token, where Ray itself looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; else empty.

    Raises:
        AccessError: RAY_AUTH_TOKEN_PATH names a file that cannot be read.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if token:
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip()
    except OSError as error:
        if named:
            raise AccessError(f"cannot read the token at RAY_AUTH_TOKEN_PATH={named} ({error.strerror})") from error
        return ""


def require_token(*, insecure: bool) -> None:
    """Make Ray's clients in this process send the token; without one go on only where `insecure` allows it.

    Raises:
        AccessError: no token, or RAY_AUTH_MODE switches it off.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if insecure:
        return
    if mode not in ("", "token"):
        raise AccessError(f"RAY_AUTH_MODE is {mode!r}, wanted token: unset it, or accept an open cluster by --insecure")
    if not find_token():
        raise AccessError(
            "no token: put the cluster's into ~/.ray/auth_token or RAY_AUTH_TOKEN (a new one for a new cluster: "
            "`ray get-auth-token --generate`), or accept an open cluster by --insecure"
        )
    os.environ["RAY_AUTH_MODE"] = "token"


def check_closed(url: str, *, insecure: bool) -> None:
    """Refuse a cluster that runs jobs for anyone.

    Raises:
        AccessError: nobody answers, the cluster is open, or it refuses the token.
    """
    answer, _ = _ask(url, "")
    if answer == HTTPStatus.OK and not insecure:
        raise AccessError(
            f"{url} answers without a token, so anyone who reaches it can run code there: start its nodes with "
            "RAY_AUTH_MODE=token, or accept it by --insecure"
        )
    if answer == HTTPStatus.OK:
        return
    with_token, _ = _ask(url, find_token())
    if with_token in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise AccessError(f"{url} refuses the token: take the cluster's own ~/.ray/auth_token")
    if with_token != HTTPStatus.OK:
        raise AccessError(
            f"{url} is no Ray dashboard (status {with_token}): check the address, and what stands before it"
        )


def ray_version(url: str) -> str:
    """The version of Ray that the cluster runs.

    Raises:
        AccessError: it does not say.
    """
    status, body = _ask(url, find_token())
    try:
        return str(json.loads(body)["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise AccessError(f"{url} is no Ray dashboard (status {status}): check the address") from error


def _ask(url: str, token: str) -> tuple[int, bytes]:
    """Status and body of the answer to a question for the version."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{url}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise AccessError(
            f"no Ray dashboard answers at {url} ({reason}): check the address, and the tunnel if there is one"
        ) from error
