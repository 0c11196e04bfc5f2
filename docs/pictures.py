"""Makes the pictures of docs/report.md and docs/ui.md: the committed pipeline, run in a folder of its own.

python docs/pictures.py        # some minutes, on a machine that does nothing else; it needs Chromium
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser  # noqa: E402

RUNNER = (sys.executable, "-m", "runner.cli")
UP = (*RUNNER, "up", "--target", "process", "--quiet")
EPOCHS = "stages.adapter.params.epochs={}"
RATE = "stages.adapter.params.learning_rate=5e-4"


def main() -> None:
    with tempfile.TemporaryDirectory() as name, Browser() as browser:
        folder = Path(name) / "tones"
        shutil.copytree(ROOT / "examples", folder / "examples")
        shutil.copy(ROOT / "pipeline.yaml", folder)
        subprocess.run([*UP, "--set", EPOCHS.format(1)], cwd=folder, check=True)
        subprocess.run(UP, cwd=folder, check=True)
        subprocess.run(UP, cwd=folder, check=True)
        subprocess.run([*RUNNER, "report", "2", "-o", "report.html"], cwd=folder, check=True)
        report = (folder / "report.html").as_uri()
        for file, width, height, dark in (("desktop", 1200, 1230, False), ("dark", 1200, 1230, True),
                                          ("phone", 390, 1300, False)):  # fmt: skip
            with browser.open(report, width, height, dark) as page:
                page.picture(DOCS / f"report-{file}.png", whole=False)
        command = [*RUNNER, "ui"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as ui:
            live = subprocess.Popen([*UP, "--set", EPOCHS.format(3), "--set", RATE], cwd=folder)
            try:
                assert ui.stdout is not None
                address = next(m[0] for line in ui.stdout if (m := re.search(r"http://\S+", line)))
                with browser.open(address, 1200, 520) as page:
                    page.wait("/[4-8]\\d %/.test(document.body.innerText) || document.querySelector('a[href$=\"/4\"]')")
                    page.click('a[href$="/4"]')
                    page.wait("/running [4-8]\\d %/.test(document.body.innerText)")
                    page.picture(DOCS / "ui-run.png")
                    page.go(address)
                    page.wait("document.querySelectorAll('tr').length > 4")
                    page.picture(DOCS / "ui-runs.png")
                    page.go(f"{address.partition('?')[0].rstrip('/')}/compare/1/2")
                    page.wait("document.querySelectorAll('svg, canvas').length > 2")
                    page.picture(DOCS / "ui-compare.png")
            finally:
                live.terminate()
                live.wait()
                ui.terminate()


if __name__ == "__main__":
    main()
