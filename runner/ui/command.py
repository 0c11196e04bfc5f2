"""The command `ui`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import tempfile
import threading
from contextlib import suppress
from html import escape
from pathlib import Path

from microstages.errors import EXIT_OK, UserError

from runner.records import open_spec, open_store
from runner.ui.answers import Answers
from runner.ui.reading import reading
from runner.ui.server import Server


def ui(args: argparse.Namespace) -> int:
    """Serve the history of a pipeline's store until somebody ends it."""
    spec, store = open_spec(args.pipeline, args.set), open_store(args.pipeline, args.set)
    if args.port > 65535:
        raise UserError("a port is a number up to 65535", where=f"--port {args.port}", fix="leave it out: any free one")
    place = store.state_folder(args.pipeline.resolve().parent)
    with reading(place):  # a history that cannot be read is told here
        pass
    try:
        server = Server(Answers(spec.name, store, place), args.port)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        fix = "give another --port, or none: any free one"
        raise UserError(f"this port cannot be had: {why}", where=f"127.0.0.1:{args.port}", fix=fix) from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="microstages-ui-")) if args.open else None
    try:
        print(f"{spec.name}: {server.url}", flush=True)
        print("for this machine's browsers; Ctrl-C ends it", flush=True)
        if folder:  # beside the server: a browser of the terminal does not return before it is closed
            threading.Thread(target=_open, args=(folder / "open.html", server.url), daemon=True).start()
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        return EXIT_OK
    finally:
        server.stop()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    return EXIT_OK


def _open(page: Path, url: str) -> None:
    """Open the browser through a page that only this user can read: arguments of a program are seen by everybody."""
    import webbrowser

    opened = False
    with suppress(OSError, webbrowser.Error):
        with os.fdopen(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write(f'<!DOCTYPE html><meta http-equiv="refresh" content="0;url={escape(url)}">')
        opened = webbrowser.open(page.as_uri())
    if not opened:
        print("no browser could be opened here: open the address above", flush=True)
