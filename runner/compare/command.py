"""The command `compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from microstages import storage, watch
from microstages.errors import EXIT_OK, UserError

from runner.compare.collect import as_data, find
from runner.named import Finder
from runner.view import Told, say


def compare(args: argparse.Namespace) -> int:
    """Set forms side by side, on the terminal, as JSON, or as a page."""
    from runner.artifacts import print_json
    from runner.compare.columns import as_text

    page: Path | None = args.page
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise UserError("the page is HTML", where=f"--output {page}", fix="give it a name that ends in .html")
    watch.current = Told(lambda text: say(text, sys.stderr))
    finder = Finder(args.pipeline, args.set)
    forms, undone = find(finder, args.stages)
    name = finder.known.pipeline.name if finder.store else args.pipeline.absolute().parent.name
    data = as_data(name, forms, undone)
    if args.json:
        print_json(data)
    else:
        print(as_text(data))
    if page is not None:
        from runner.compare.page import page_of

        page.parent.mkdir(parents=True, exist_ok=True)
        storage.replace(str(page.absolute()), page_of(data).encode())
        if not args.json:
            print(f"\n{page}")
    return EXIT_OK
