"""Bearer tokens: who may call.

The tokens file holds one line for each caller, ``name:sha256``, where sha256 is the hex digest of
the token; empty lines and lines that start with ``#`` are skipped. A fresh token with its line::

    python -m serve_app.auth NAME

Tokens are drawn with 256 bits, so that a plain digest cannot be reversed. The file is read again
when it changes: a line that is added or removed counts from the next request on.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.http.errors import json_response

logger = logging.getLogger("ray.serve")

OPEN_PATHS = frozenset({"/liveness"})
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_LINE = re.compile(r"([A-Za-z0-9._@-]{1,64}):([0-9a-fA-F]{64})")


class MalformedTokensFile(ValueError):
    """A tokens file that cannot be used, with the line that is wrong."""


def new_token(name: str) -> tuple[str, str]:
    """Draw a token.

    Parameters
    ----------
    name : str
        Whose it is: 1 to 64 letters, digits, '.', '_', '@' or '-'.

    Returns
    -------
    token : str
        For the caller; it is kept nowhere else.
    line : str
        For the tokens file.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("a name has 1 to 64 letters, digits, '.', '_', '@' or '-'")
    token = secrets.token_urlsafe(32)
    return token, f"{name}:{_digest(token)}"


def read_tokens(path: Path) -> tuple[tuple[str, str], ...]:
    """Read a tokens file, as pairs of name and digest.

    Raises
    ------
    MalformedTokensFile
        Naming the file and the line, never what stands there.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MalformedTokensFile(f"{path}: cannot be read: {type(error).__name__}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise MalformedTokensFile(f"{path}:{number}: name:sha256 in hex is needed")
        entries.append((match[1], match[2].lower()))
    if not entries:
        raise MalformedTokensFile(f"{path}: names no token, so nobody could call")
    return tuple(entries)


class Tokens:
    """The tokens of a file, read again when it changes.

    A file that becomes unreadable or malformed while the server runs changes nothing: the tokens
    read last stay valid and the log says so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature = self._sign()
        self._entries = read_tokens(path)

    def name_of(self, token: str) -> str | None:
        """Give the name that a token belongs to; None if it is unknown."""
        self._refresh()
        presented = _digest(token)
        found = None
        for name, digest in self._entries:
            # No early exit: the time taken tells nothing about the entries.
            if hmac.compare_digest(digest, presented):
                found = name
        return found

    def _refresh(self) -> None:
        signature = self._sign()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._entries = read_tokens(self._path)
        except MalformedTokensFile as error:
            logger.error("tokens file not taken over, the old tokens stay valid: %s", error)

    def _sign(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


class BearerAuth:
    """Answer 401 to whoever has no valid token; liveness stays open."""

    def __init__(self, app: ASGIApp, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            challenge, detail = "Bearer", "a bearer token is needed"
        elif self._tokens.name_of(token) is None:
            challenge, detail = 'Bearer error="invalid_token"', "the bearer token is not valid"
        else:
            await self._app(scope, receive, send)
            return
        response = json_response({"detail": detail}, 401, {"WWW-Authenticate": challenge})
        await response(scope, receive, send)


def _digest(token: str) -> str:
    # Headers arrive as Latin-1; any text has a digest, and no odd one matches.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def main() -> None:
    """Print a fresh token and its line for the tokens file."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.auth", description="Draw a bearer token."
    )
    parser.add_argument("name", help="whose token it is")
    arguments = parser.parse_args()
    try:
        token, line = new_token(arguments.name)
    except ValueError as error:
        parser.error(str(error))
    print(f"token, for the caller only:   {token}")
    print(f"line, for the tokens file:    {line}")


if __name__ == "__main__":
    main()
