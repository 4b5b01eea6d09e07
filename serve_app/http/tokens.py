"""Bearer tokens of the callers.

The tokens file holds one line per caller, ``name:sha256``, where sha256 is the hex digest of the
token. Empty lines and lines that start with ``#`` are skipped. ``python -m serve_app.auth NAME``
prints a new token and its line.

Tokens have 256 random bits, so a plain digest cannot be reversed. A change of the file takes
effect at the next request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from pathlib import Path

logger = logging.getLogger("ray.serve")

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_LINE = re.compile(r"([A-Za-z0-9._@-]{1,64}):([0-9a-fA-F]{64})")


class MalformedTokensFile(ValueError):
    """A tokens file cannot be used; the message names the line."""


def new_token(name: str) -> tuple[str, str]:
    """Return a new random token, which is stored nowhere, and its line for the tokens file."""
    if not _NAME.fullmatch(name):
        raise ValueError("a name has 1 to 64 letters, digits, '.', '_', '@' or '-'")
    token = secrets.token_urlsafe(32)
    return token, f"{name}:{_digest(token)}"


def read_tokens(path: Path) -> tuple[tuple[str, str], ...]:
    """Return the entries of a tokens file, as pairs of name and digest.

    Raises
    ------
    MalformedTokensFile
        With the file and the line number, never the content of the line.
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
            raise MalformedTokensFile(f"{path}:{number}: must be name:sha256, in hexadecimal")
        entries.append((match[1], match[2].lower()))
    if not entries:
        raise MalformedTokensFile(f"{path}: contains no token, so nobody could call")
    return tuple(entries)


class Tokens:
    """Tokens of a file that is reread when it changes.

    If the file becomes unreadable or malformed while the server runs, the tokens read last stay
    valid and an error is logged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature = self._sign()
        self._entries = read_tokens(path)

    def name_of(self, token: str) -> str | None:
        """Return the name that a token belongs to; None if the token is unknown."""
        self._refresh()
        presented = _digest(token)
        match = None
        for name, digest in self._entries:
            # No early exit: the time must not depend on which entry matches.
            if hmac.compare_digest(digest, presented):
                match = name
        return match

    def _refresh(self) -> None:
        signature = self._sign()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._entries = read_tokens(self._path)
        except MalformedTokensFile as error:
            logger.error("tokens file ignored, the previous tokens stay valid: %s", error)

    def _sign(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _digest(token: str) -> str:
    # Headers are decoded as Latin-1, so a token can hold any character.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
