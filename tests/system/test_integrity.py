"""Whatever happens to a file of a committed artifact is found when it is read, named, and mended by one more `up`."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from chaos.audit import Blobs, Files, Folder, audit
from microstages.artifact import open_artifact
from microstages.errors import UserError
from microstages.manifest import KINDS
from stores import servers

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PIPELINE = """\
name: integrity
target: process
stages:
  data:
    uses: prepare-data
    inputs: {source: rows.jsonl, model: tiny-phi3}
    params: {template: "{phrase}: {tone}", completion: tone, max_length: 64, test_fraction: 0.2}
  pair:
    uses: ./pair
    inputs: {dataset: "${{ stages.data.dataset }}"}
  merged:
    uses: merge
    inputs: {base_model: tiny-phi3, adapter: adapter}
"""
PAIR = {
    "schema": 1, "name": "pair", "version": "1", "summary": "Two files of one size.", "command": ["sh", "./run.sh"],
    "code": ["."], "manifest": "runner", "inputs": {"dataset": {"flag": "--dataset", "kinds": ["dataset"]}},
    "outputs": {"out": {"flag": "--out", "kind": "dataset"}}, "params": {},
}  # fmt: skip
SCRIPT = """\
for a in "$@"; do k="${a%%=*}"; eval "${k#--}=\\${a#*=}"; done
echo the one file > "$out/one"; echo two is other > "$out/two"
"""
ONE, TWO = "pair/out/one", "pair/out/two"


class Shelf(Protocol):
    """A store whose files can be spoiled behind everybody's back."""

    files: Files

    def flip(self, name: str, at: int, mask: int) -> None:
        """Change one byte; the same again restores it."""

    def cut(self, name: str) -> None: ...

    def remove(self, name: str) -> None: ...

    def exchange(self, one: str, other: str) -> None: ...


class Local:
    """A store in a folder. What can be put back is: the size, the inode, the modification time."""

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, Folder(path)

    def flip(self, name: str, at: int, mask: int) -> None:
        file = self.path / name
        times = file.stat()
        with file.open("r+b") as f:
            f.seek(at)
            value = f.read(1)[0]
            f.seek(at)
            f.write(bytes([value ^ mask]))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    def cut(self, name: str) -> None:
        os.truncate(self.path / name, (self.path / name).stat().st_size // 2)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def exchange(self, one: str, other: str) -> None:
        aside = self.path / "aside"
        (self.path / one).rename(aside)
        (self.path / other).rename(self.path / one)
        aside.rename(self.path / other)


class Azure:
    """A store on Azurite, changed with Microsoft's own client."""

    def __init__(self, connection: str, uri: str) -> None:
        self.connection, self.files = connection, Blobs(connection, uri)
        self.container, _, self.folder = uri.removeprefix("abfs://").partition("/")

    @contextmanager
    def _container(self) -> Iterator[Any]:
        from azure.storage.blob import ContainerClient

        with ContainerClient.from_connection_string(self.connection, self.container) as client:
            yield client

    def _put(self, name: str, data: bytes) -> None:
        with self._container() as client:
            client.upload_blob(f"{self.folder}/{name}", data, overwrite=True)

    def flip(self, name: str, at: int, mask: int) -> None:
        data = bytearray(self.files.read(name))
        data[at] ^= mask
        self._put(name, bytes(data))

    def cut(self, name: str) -> None:
        data = self.files.read(name)
        self._put(name, data[: len(data) // 2])

    def remove(self, name: str) -> None:
        with self._container() as client:
            client.delete_blob(f"{self.folder}/{name}")

    def exchange(self, one: str, other: str) -> None:
        first, second = self.files.read(one), self.files.read(other)
        self._put(one, second)
        self._put(other, first)


class Place:
    """A small pipeline that has run, and its store. Files go by `stage/output/path`, whichever attempt made them."""

    def __init__(self, folder: Path, uri: str, shelf: Shelf, places: int) -> None:
        self.folder, self.uri, self.shelf, self.places = folder, uri, shelf, places

    def up(self) -> dict[str, str]:
        """Run `up`, which must end well; stage -> status."""
        command = [sys.executable, "-m", "runner.cli", "up", "--json", "--set", f"store={self.uri}"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                              check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.said = done.stderr
        return {s["uses"]: s["status"] for s in json.loads(done.stdout)["stages"]}

    def outputs(self) -> dict[str, str]:
        """`stage/output` -> its folder in the store."""
        found = {}
        for (stage, fingerprint), attempt in audit(self.shelf.files).commits.items():
            for output in json.loads(self.shelf.files.read(f"artifacts/{stage}/{fingerprint}/commit.json"))["outputs"]:
                found[f"{stage}/{output}"] = f"artifacts/{stage}/{fingerprint}/{attempt}/{output}"
        return found

    def names(self) -> dict[str, int]:
        """Every file of every artifact -> its size in bytes."""
        found = {}
        for output, folder in self.outputs().items():
            manifest = json.loads(self.shelf.files.read(f"{folder}/artifact.json"))
            found |= {f"{output}/{f['path']}": f["size"] for f in manifest["files"]}
        return found

    def where(self, name: str) -> tuple[str, str]:
        """The folder of a file's artifact in the store, and the file's path in the store."""
        stage, output, path = name.split("/", 2)
        folder = self.outputs()[f"{stage}/{output}"]
        return folder, f"{folder}/{path}"

    def read(self, folder: str) -> None:
        open_artifact(f"{self.uri}/{folder}", KINDS)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small adapter to the example model, as another program would make one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    model = AutoModelForCausalLM.from_pretrained(EXAMPLES / "tiny-phi3", dtype=torch.bfloat16)
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["qkv_proj"], init_lora_weights=False))
    peft.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["folder", "azurite"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, adapter: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("integrity") / "project"
    (folder / "pair").mkdir(parents=True)
    (folder / "pair" / "interface.json").write_text(json.dumps(PAIR))
    (folder / "pair" / "run.sh").write_text(SCRIPT)
    rows = (EXAMPLES / "tones.jsonl").read_text().splitlines(keepends=True)[:40]
    (folder / "rows.jsonl").write_text("".join(rows))
    shutil.copytree(EXAMPLES / "tiny-phi3", folder / "tiny-phi3")
    shutil.copytree(adapter, folder / "adapter")
    (folder / "pipeline.yaml").write_text(PIPELINE)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "azurite":
            azurite = request.getfixturevalue("azurite")
            uri = azurite.uri("integrity")
            servers.use(azurite.environment, patch)
            shelf: Shelf = Azure(azurite.environment["AZURE_STORAGE_CONNECTION_STRING"], uri)
            made = Place(folder, uri, shelf, places=10)
        else:
            path = folder / ".runner" / "store"
            made = Place(folder, str(path), Local(path), places=200)
        assert set(made.up().values()) == {"done"}
        yield made
    servers.forget()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """`elsewhere("x")`: from now on with the cache of another machine, which has seen nothing."""
    return lambda name: monkeypatch.setenv("MICROSTAGES_CACHE", str(tmp_path / f"cache-{name}"))


def test_the_pipeline_has_files_of_all_stages_and_a_pair_of_one_size(place: Place):
    sizes = place.names()
    assert {name.split("/")[0] for name in sizes} == {"prepare-data", "pair", "merge"}
    assert sizes[ONE] == sizes[TWO]
    assert len(sizes) >= 10


def test_every_flipped_byte_is_found_and_named(place: Place, elsewhere: Callable[[object], None]):
    draw = random.Random(0)
    for n, (name, size) in enumerate(place.names().items()):
        elsewhere(n)
        folder, file = place.where(name)
        for at in draw.sample(range(size), min(place.places, size)):
            mask = draw.randint(1, 255)
            place.shelf.flip(file, at, mask)
            with pytest.raises(UserError, match="altered") as told:
                place.read(folder)
            place.shelf.flip(file, at, mask)
            assert told.value.where.endswith(file), f"byte {at} of {name}"
        place.read(folder)


def test_files_that_changed_places_are_found_and_named(place: Place, elsewhere: Callable[[object], None]):
    elsewhere("exchanged")
    (folder, one), (_, two) = place.where(ONE), place.where(TWO)
    place.shelf.exchange(one, two)
    with pytest.raises(UserError, match="altered") as told:
        place.read(folder)
    assert told.value.where.endswith((one, two))
    place.shelf.exchange(one, two)
    place.read(folder)


def flipped(shelf: Shelf, file: str, draw: random.Random, size: int) -> None:
    shelf.flip(file, draw.randrange(size), draw.randint(1, 255))


DAMAGES: dict[str, Callable[..., Any]] = {
    "flipped": flipped,
    "truncated": lambda shelf, file, *_: shelf.cut(file),
    "removed": lambda shelf, file, *_: shelf.remove(file),
}


def mended(place: Place, name: str, elsewhere: Callable[[object], None], damage: object) -> None:
    """`up` makes the stage of a damaged file again, nothing else, says so, and all digests are the old ones."""
    before = audit(place.shelf.files).digests
    elsewhere(f"{damage}-{name.replace('/', '-')}")
    stage = name.partition("/")[0]
    expected = {other: "done" if other == stage else "reused" for other in ("prepare-data", "pair", "merge")}
    assert place.up() == expected, (damage, name, place.said)
    found = audit(place.shelf.files)
    assert found.digests == before, (damage, name)
    assert found.wrong == [], (damage, name)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_its_stage_made_again(
    place: Place, elsewhere: Callable[[object], None], damage: str
):
    draw = random.Random(damage)
    sizes = place.names()
    names = list(sizes)
    if isinstance(place.shelf, Azure):  # a start of the runner takes longer there: one file of each artifact
        names = [draw.choice([n for n in names if n.startswith(s)]) for s in ("prepare-data/", "pair/", "merge/")]
    for name in names:
        folder, file = place.where(name)
        DAMAGES[damage](place.shelf, file, draw, sizes[name])
        elsewhere(f"read-{name.replace('/', '-')}")
        with pytest.raises(UserError, match=r"altered|missing") as told:
            place.read(folder)
        assert told.value.where.endswith(file), name
        mended(place, name, elsewhere, damage)
        assert f"{name.partition('/')[2]}: this file of the artifact" in place.said, place.said


def test_exchanged_files_are_made_again(place: Place, elsewhere: Callable[[object], None]):
    place.shelf.exchange(place.where(ONE)[1], place.where(TWO)[1])
    mended(place, ONE, elsewhere, "exchanged")
