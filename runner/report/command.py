"""The command `report`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from microstages import storage, watch
from microstages.errors import EXIT_OK, UserError

from runner.records import open_history, open_store
from runner.report.collect import as_data, read_pipeline
from runner.report.which import meant
from runner.view import Told, say

PAGE = Path("report.html")
STDOUT = Path("-")


def report(args: argparse.Namespace) -> int:
    """Write the page of a run, or print what stands in it as JSON."""
    page: Path | None = args.page
    if page not in (None, STDOUT) and page.suffix.lower() not in (".html", ".htm"):
        fix = "give it a name that ends in .html, or - for stdout"
        raise UserError("the page is HTML", where=f"--output {page}", fix=fix)
    if args.json and page == STDOUT:
        raise UserError("stdout takes one of --json and --output -", fix="give one of them")
    watch.current = Told(lambda text: say(text, sys.stderr))
    store, history = open_store(args.pipeline, args.set), open_history(args.pipeline, args.set)
    from runner.report.cards import has_model, write_all

    wanted = has_model if args.card is not None else None
    shown = meant(store, history, args.run, lambda text: say(f"note: {text}", sys.stderr), args.pipeline, wanted)
    own = shown.file is None or shown.file.resolve() == args.pipeline.resolve()
    pipeline = read_pipeline(args.pipeline, args.set) if own else read_pipeline(shown.file, [])
    data = as_data(pipeline, store, shown)
    if args.json:
        from runner.artifacts import print_json

        print_json(data)
    if args.card is not None:
        for file in write_all(args.card, store, shown):
            if not args.json:
                print(file)
    if page is None and (args.json or args.card is not None):
        return EXIT_OK
    from runner.report.page import page_of

    text = page_of(data)
    if page == STDOUT:
        sys.stdout.write(text)
        return EXIT_OK
    page = page or PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    storage.replace(str(page.absolute()), text.encode())
    if not args.json:
        print(page)
    return EXIT_OK
