"""A page that is one file and needs nothing else: styles, data, plots and the code that draws them are in it.

What other programs wrote (names, prompts, answers) is escaped wherever it stands, and the page's own policy lets a
browser run and apply only what is written here, by its hash, load nothing and connect to nobody.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any

CHART = "chart.umd.min.js"  # Chart.js, the only copy of it here


def text(value: object) -> str:
    """A value as text of an element or an attribute."""
    return escape(str(value).encode("utf-8", "replace").decode(), quote=True)


def short(value: str, width: int) -> str:
    return value if len(value) <= width else value[: width - 1] + "…"


def file(name: str, package: str = "runner.compare") -> str:
    """A file of this package as text; of the library without the line that names its source map."""
    content = files(package).joinpath(name).read_text(encoding="utf-8")
    return content.partition("\n//# sourceMappingURL=")[0]


def document(title: str, parts: Iterable[str], data: Mapping[str, Any], *, style: str, code: str) -> str:
    """A whole page of the parts of its body. `data` is what `code` finds in the element `#data`; Chart.js is there."""
    chart, style, code = file(CHART), f"\n{style}", f"\n{code}"
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(chart)} {_hash(code)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{text(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            *parts,
            f'<script type="application/json" id="data">{inside_script(data)}</script>',
            f"<script>{chart}</script>",
            f"<script>{code}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def inside_script(data: Mapping[str, Any]) -> str:
    """JSON in which no `<` stands, so that nothing in it can end the element or open another."""
    value = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace").decode()
    return value.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _hash(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
