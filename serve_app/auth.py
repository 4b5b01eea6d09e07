"""Create a bearer token: ``python -m serve_app.auth NAME``."""

from __future__ import annotations

import argparse

from serve_app.http.tokens import new_token


def main() -> None:
    """Print a new token and its line for the tokens file."""
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.auth", description="Create a bearer token."
    )
    parser.add_argument("name", help="name of the caller")
    arguments = parser.parse_args()
    try:
        token, line = new_token(arguments.name)
    except ValueError as error:
        parser.error(str(error))
    print(f"token, for the caller only:   {token}")
    print(f"line, for the tokens file:    {line}")


if __name__ == "__main__":
    main()
