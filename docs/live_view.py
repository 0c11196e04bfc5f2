"""Makes docs/live-view.svg: a real run on a real terminal, at the moment when a text first stands on its screen.

python docs/live_view.py 'adapter .* 3\\d%.*\\n.*\\n.*answering' runner up --target process
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path

import pyte

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
pyte.graphics.TEXT[2] = "+italics"  # pyte knows no faint letters
pyte.graphics.TEXT[22] = "-bold"

from terminal import Terminal  # noqa: E402

COLUMNS, LINES = 92, 14
WIDE, HIGH, PAD = 8.4, 19.0, 18.0  # px of a letter, of a line, around the whole
COLORS = {"green": "#3fb950", "cyan": "#39c5cf", "red": "#ff7b72", "brown": "#d29922"}


def svg(screen: pyte.Screen) -> str:
    """The screen as a picture; letters of one kind that stand side by side are one piece."""
    used = max((y for y, line in enumerate(screen.display) if line.strip()), default=0) + 1
    width, height = COLUMNS * WIDE + 2 * PAD, used * HIGH + 2 * PAD
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="A run as a terminal shows it">',
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="10" fill="#0d1117"/>',
        '<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="14">',
    ]
    for y in range(used):
        row, x = screen.buffer[y], 0
        while x < COLUMNS:
            cell, end = row[x], x
            while end < COLUMNS and row[end][1:] == cell[1:]:
                end += 1
            if text := "".join(row[i].data for i in range(x, end)).rstrip():
                color = COLORS.get(cell.fg, "#8b949e" if cell.italics else "#e6edf3")
                bold = ' font-weight="700"' if cell.bold else ""
                out.append(
                    f'<text x="{PAD + x * WIDE:.1f}" y="{PAD + (y + 0.75) * HIGH:.1f}" fill="{color}"{bold} '
                    f'textLength="{len(text) * WIDE:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve">'
                    f"{escape(text)}</text>"
                )
            x = end
    return "\n".join([*out, "</g>", "</svg>", ""])


def main() -> None:
    pattern, *command = sys.argv[1:]
    with Terminal(command, Path.cwd(), {}, COLUMNS, LINES) as terminal:
        terminal.until(lambda lines: re.search(pattern, "\n".join(lines)))
        (Path(__file__).parent / "live-view.svg").write_text(svg(terminal.screen))
        terminal.process.send_signal(2)
        terminal.end()


if __name__ == "__main__":
    main()
