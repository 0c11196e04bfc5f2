"""Starts a program with secrets of an Azure Key Vault in its environment:

    python -m microstages.vault HF_TOKEN=https://team.vault.azure.net/secrets/hub -- train-lora --dataset=…

So a job's definition, which many may read, names secrets and holds none. They are read with the identity of whoever
runs this, and the program takes this one's place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from microstages import arm
from microstages.errors import EXIT_USER, UserError

API = "7.4"
PUBLIC = "https://vault.azure.net"


def address(vault: str, secret: str) -> str:
    """The address of a secret; `vault` is a Key Vault's name, or its address in another cloud."""
    base = vault.rstrip("/") if "://" in vault else f"https://{vault}.vault.azure.net"
    return f"{base}/secrets/{secret}"


def value(url: str) -> str:
    """The value of the secret at an address. Raises UserError, and TemporaryError where the vault does not answer."""
    rest = arm.Rest(arm.Token(_scope(arm.checked(url, url))))
    try:
        return str(rest.ask("GET", f"{url}?api-version={API}").json["value"])
    except arm.RefusedError as error:
        fix = "check the names of the vault and the secret"
        if error.status in (401, 403):
            fix = "give the job's identity the role Key Vault Secrets User on the vault"
        raise UserError(error.what, where=url, fix=fix) from None


def _scope(url: str) -> str:
    """`https://team.vault.azure.cn/…` wants a token for `https://vault.azure.cn`."""
    parts = urlsplit(url)
    return arm.scope_of(f"{parts.scheme}://{(parts.hostname or '').partition('.')[2]}", PUBLIC)


def main(argv: Sequence[str]) -> int:
    """Become the program after `--`; returns only where that cannot be."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    names, program = words[:cut], words[cut + 1 :]
    if not program or not all("=" in name for name in names):
        print("usage: python -m microstages.vault NAME=ADDRESS … -- PROGRAM …", file=sys.stderr)
        return EXIT_USER
    try:
        found = {name: value(url) for name, _, url in (word.partition("=") for word in names)}
        os.execvpe(program[0], program, {**os.environ, **found})
    except FileNotFoundError:
        error = UserError("there is no such program", where=program[0], fix="check the image")
    except UserError as raised:
        error = raised
    _tell(error)
    return error.exit_code


def _tell(error: UserError) -> None:
    """The error as a stage tells it."""
    from microstages.reporting import reporting

    with reporting("vault") as report:
        report.event(
            "error", message=str(error), what=error.what, where=error.where, fix=error.fix, exit_code=error.exit_code
        )
        report.say(f"microstages.vault: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
