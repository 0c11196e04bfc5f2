"""What holds at any size: bounded memory, a quick start, nothing left when it is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WORDS = ["The lamp went out in the old house", "Nobody knew what had happened", "They all laughed and went home"]
MEASURED = """
import resource, sys
from microstages_prepare_data.cli import main
code = main.main(sys.argv[1:])
# ru_maxrss of a process itself counts what its parent had before the exec; VmHWM does not
own = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(own, children, file=sys.stderr)
sys.exit(code)
"""


def write_rows(file: Path, n: int) -> Path:
    with file.open("w") as f:
        for i in range(n):
            f.write(json.dumps({"text": f"{i} {WORDS[i % 3]} {i * 7 % 1000}", "more": "x" * 500}) + "\n")
    return file


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60,000 rows, 36 MB: some seconds of work for two processes."""
    return write_rows(tmp_path_factory.mktemp("large") / "rows", 60_000)


def peak_mb(source: Path, model: Path, output: Path) -> float:
    """Largest memory of the stage and of one of its workers, in MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "--source", source, "--model", model, "--output", output, "--workers", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own, children = done.stderr.strip().split("\n")[-1].split()
    return max(int(own), int(children)) / 1e3


def test_memory_does_not_grow_with_the_input(model, tmp_path, large):
    small = write_rows(tmp_path / "small", 10_000)
    assert small.stat().st_size > 5e6  # both are read by workers
    a, b = (peak_mb(s, model, tmp_path / f"out-{n}") for n, s in enumerate((small, large)))
    assert b < a + 15  # six times the rows, 30 MB more of source
    assert b < 250


def test_importing_the_program_loads_nothing_heavy():
    code = (
        "import sys, microstages_prepare_data.cli as c; c.main.interface();"
        "print([m for m in ('numpy', 'tokenizers', 'pyarrow', 'jinja2', 'torch', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_run_loads_only_what_it_needs(model, tmp_path):
    write_rows(tmp_path / "rows", 50)
    code = (
        "import sys; from microstages_prepare_data.cli import main; main.main(sys.argv[1:]);"
        "print([m for m in ('pyarrow', 'jinja2', 'torch', 'transformers', 'multiprocessing') if m in sys.modules])"
    )
    arguments = ["--source", tmp_path / "rows", "--model", model, "--output", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 143), (signal.SIGKILL, -9)])
def test_stopped_while_reading(number, code, model, tmp_path, large):
    process = subprocess.Popen(
        [sys.executable, "-m", "microstages_prepare_data.cli", "--source", large, "--model", model,
         "--output", tmp_path / "store" / "out", "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert '"progress"' in process.stdout.readline()
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == code
    assert "Traceback" not in said
    for _ in range(100):  # the workers end with their parent, however it ends
        if not any(os.path.exists(f"/proc/{w}") for w in workers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers live on")
    assert not (tmp_path / "store" / "out").exists()
    if number != signal.SIGKILL:
        assert list((tmp_path / "store").iterdir()) == []


def test_a_killed_worker_is_told(model, tmp_path, large):
    process = subprocess.Popen(
        [sys.executable, "-m", "microstages_prepare_data.cli", "--source", large, "--model", model,
         "--output", tmp_path / "store" / "out", "--workers", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    worker = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    os.kill(int(worker), signal.SIGKILL)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert "--workers: a worker process was killed" in said
    assert list((tmp_path / "store").iterdir()) == []
