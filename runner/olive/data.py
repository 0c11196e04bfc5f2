"""`data_configs`: from which rows, made into which sequences.

Both nestings are read: `params_config` with `component_kwargs`, and a config for each component with or without
`params`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from runner.document import Place
from runner.olive.params import Params
from runner.olive.resources import HUB_NAME, Paths, read_path
from runner.olive.section import CHANGED, LOST, NEEDLESS, USED, Layers, Section
from runner.olive.sequences import ROWS_FIRST, read_sequences, read_text

COMPONENTS = ("load_dataset", "pre_process_data", "post_process_data", "dataloader")
UNUSED = {
    "post_process_data": {"type": ("text",), "task": ("text",)},
    "dataloader": {"type": ("text",), "task": ("text",), "batch_size": ("whole",), "num_workers": ("whole",),
                   **dict.fromkeys(("shuffle", "drop_last", "pin_memory"), ("flag",))},
}  # fmt: skip
FILES = ("json", "csv", "parquet")
LOADERS, MAKERS = ("huggingface_dataset",), ("huggingface_pre_process", "text_generation_huggingface_pre_process")
RESOURCE = {"type", "config", "azureml_client", "datastore_name", "relative_path"}  # not a mapping of splits
READ = "rows are read as a stream, and fetched once into $MICROSTAGES_CACHE"


@dataclass(frozen=True)
class Rows:
    """One data config: the address of its rows, the files there, the split, and what they are made into."""

    name: str
    place: Place
    source: str
    files: tuple[str, ...] = ()
    split: str | None = None
    params: Params = field(default_factory=Params)


class _Reader:
    """Reads the data configs of one file."""

    def __init__(self, generation: str, client: Mapping[str, str], paths: Paths) -> None:
        self.generation, self.client, self.paths = generation, client, paths

    def rows(self, section: Section, name: str) -> Rows:
        kind = section.word("type", {"HuggingfaceContainer": "rows", "DataContainer": "rows"}, "rows")
        section.fate("type", USED if kind else LOST, "uses: prepare-data")
        section.ignore({"user_script": ("text",), "script_dir": ("text",)}, NEEDLESS, "none of its functions is used")
        opened: list[Section] = []
        parts = {c: self.component(section, c, opened) for c in COMPONENTS}
        load, make = parts["load_dataset"], parts["pre_process_data"]
        source, files = self.source(section, load)
        split = self.split(section, load, source)
        filters = load.take("col_filters", "mapping") or {}
        load.fate("col_filters", USED, "where")
        params = Params()
        params.put("where", [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in filters.items()] or None)
        params = params.merged(read_text(make, self.generation == "A"))
        params = params.merged(read_sequences(section, make, self.generation == "A", params))
        self.rest(load, make)
        for one in (*opened, section):
            one.close()
        return Rows(name, section.node.place, source, files, split, params)

    def component(self, section: Section, name: str, opened: list[Section]) -> Layers:
        """All places where the parameters of a component may stand."""
        found: list[Section] = []

        def add(one: Section | None) -> None:
            if one is not None:
                found.append(one)
                opened.append(one)

        config = section.child(f"{name}_config")
        if config is not None:
            add(config.child("params"))
            add(config)
        if (components := section.child("components")) is not None:
            if (one := components.child(name)) is not None:
                one.ignore({"name": ("text",)}, NEEDLESS, "a label")
                add(one.child("params"))
                add(one)
            opened.append(components)
        if (shared := section.child("params_config")) is not None:
            if (inner := shared.child("component_kwargs")) is not None:
                add(inner.child(name))
                opened.append(inner)
            if name in ("load_dataset", "pre_process_data"):
                found.append(shared)
            opened.append(shared)
        layers = Layers(*found)
        if name in UNUSED:
            layers.ignore(UNUSED[name], NEEDLESS, "of evaluations by Olive; training makes its own batches")
            return layers
        wanted = LOADERS if name == "load_dataset" else MAKERS
        for one in found:
            if not one.path.endswith(("params_config", "params")):
                one.word("type", {w: w for w in wanted})
                one.fate("type", USED, "prepare-data")
        return layers

    # --- where the rows are ---

    def source(self, section: Section, load: Layers) -> tuple[str, tuple[str, ...]]:
        """The address and the files below it."""
        name = load.take("data_name", "text")
        load.fate("data_name", USED, "input source")
        folder = load.take("data_dir", "text") or ""
        load.fate("data_dir", USED, "the folder of the source")
        subset = load.take("subset", "text") or ""
        load.fate(
            "subset", CHANGED, "the folder of that name", "of configurations only those that are folders are known"
        )
        revision = load.take("revision", "text") or ""
        load.fate("revision", USED, "hf://datasets/…@revision")
        files, address = self.files(load)
        if name is None:
            if not any(s.given("data_name") for s in load.sections):
                section.wrong(
                    section.node.place, f"{section.path} has no data_name", "name a data set, or json, csv, parquet"
                )
            return "", ()
        holder = load.holder("data_name") or section
        if name.lower() in FILES:
            if address:
                return address, ()
            if not files and not folder:
                what = f"{holder.at('data_name')} is {name!r}, and there are no data_files"
                holder.wrong(holder.place("data_name"), what, "write data_files")
            return self.below(folder, files)
        if name.lower() in ("text", "arrow", "imagefolder", "audiofolder", "xml", "webdataset", "pandas"):
            holder.wrong(holder.place("data_name"), f"rows of {name!r} are not read here", ROWS_FIRST)
            return "", ()
        if (self.paths.config / name).is_dir() or name.startswith((".", "/")) or "://" in name:
            return self.below(os.path.join(name, subset, folder) if subset or folder else name, files)
        if not HUB_NAME.fullmatch(name):
            holder.wrong(
                holder.place("data_name"),
                f"{name!r} is neither a folder here nor a data set's name",
                "write owner/name",
            )
            return "", ()
        where = f"hf://datasets/{name}" + (f"@{revision}" if revision else "")
        parts = [p for p in (subset, folder) if p]
        return "/".join([where, *parts]), files

    def files(self, load: Layers) -> tuple[tuple[str, ...], str]:
        """What `data_files` names: paths or patterns, or one address."""
        holder = load.holder("data_files")
        if holder is None:
            load.take("data_files", "text", "list", "mapping")
            load.fate("data_files", USED)
            return (), ""
        node = holder.values["data_files"]
        if isinstance(node.value, dict) and RESOURCE & node.value.keys():
            return (), read_path(holder, "data_files", self.client, "input source") or ""
        if isinstance(node.value, dict):
            split = str(load.take("split", "text") or "train").partition("[")[0]
            by_split = holder.child("data_files")
            if by_split is None:
                return (), ""
            found: tuple[str, ...] = ()
            for key in by_split.values:
                value = by_split.take(key, "text", "list", of="text")
                if key == split and value:
                    found = tuple([value] if isinstance(value, str) else value)
                by_split.fate(key, *((USED, "input source") if key == split else (NEEDLESS, f"the split is {split}")))
            if not found:
                holder.wrong(node.place, f"{by_split.path} has no split {split!r}", "name it, or another split")
            return found, ""
        value = holder.take("data_files", "text", "list", "mapping", of="text")
        holder.fate("data_files", USED, "input source")
        return tuple([value] if isinstance(value, str) else value or ()), ""

    def below(self, folder: str, files: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """Files below a folder as one source: the file, the pattern, or their folder and their names there."""
        whole = [os.path.join(folder, f) if folder and "://" not in f else f for f in files]
        if not whole:
            return self.paths.rows(folder), ()
        if len(whole) == 1:
            return self.paths.rows(whole[0]), ()
        top = os.path.commonpath([PurePosixPath(f).parent.as_posix() for f in whole]) or "."
        return self.paths.rows(top), tuple(os.path.relpath(f, top) for f in whole)

    def split(self, section: Section, load: Layers, source: str) -> str | None:
        """The split as prepare-data takes it; None where all rows are meant."""
        split = load.take("split", "text")
        load.fate("split", USED, "split")
        hub = source.startswith("hf://") or not os.path.splitext(source)[1]
        if split is None and not any(s.given("split") for s in load.sections):
            if hub and source:
                return "validation"
            section.report.note(
                f"{section.path} names no split. Olive took 'validation', which a file does not have: all rows"
            )
            return None
        return None if not hub and split == "train" else split

    def rest(self, load: Layers, make: Layers) -> None:
        """Keys without an effect, and those that other tasks use."""
        load.ignore({**dict.fromkeys(("streaming", "keep_in_memory", "trust_remote_code", "save_infos"), ("flag",)),
                     "num_proc": ("whole",), "cache_dir": ("text",), "download_mode": ("text",),
                     "verification_mode": ("text",), "token": ("text", "flag"), "storage_options": ("mapping",)},
                    NEEDLESS, READ)  # fmt: skip
        load.ignore({"label_cols": ("list", "text"), "batch_size": ("whole",)}, NEEDLESS, "of evaluations by Olive")
        make.ignore(
            {"model_name": ("text",), "tokenizer": ("text",)}, NEEDLESS, "input model: the model that is trained"
        )
        make.ignore(
            {"task": ("text",), "trust_remote_code": ("flag",)}, NEEDLESS, "text generation is what the stages do"
        )
        make.ignore({"user_script": ("text",), "script_dir": ("text",)}, NEEDLESS, "none of its functions is used")
        load.ignore({"task": ("text",)}, NEEDLESS, "text generation is what the stages do")


def read_data(top: Section, generation: str, client: Mapping[str, str], paths: Paths) -> dict[str, Rows]:
    """All data configs by name."""
    reader, out = _Reader(generation, client, paths), {}
    for section, name in _entries(top):
        name_ = section.read("name", "text", how=USED, text="the name that passes use", default=name)
        if not name_:
            if not section.given("name"):
                section.wrong(section.node.place, f"{section.path} has no name", "passes use it by its name")
            name_ = section.path
        if name_ in out:
            section.wrong(section.place("name"), f"there are two data configs with the name {name_!r}", "rename one")
        out[str(name_)] = reader.rows(section, str(name_))
    return out


def read_inline(section: Section, generation: str, client: Mapping[str, str], paths: Paths) -> Rows:
    """A data config that stands in a pass."""
    name = section.read("name", "text", how=USED, text="its name", default=section.path)
    return _Reader(generation, client, paths).rows(section, str(name))


def _entries(top: Section) -> Iterator[tuple[Section, str]]:
    """A list of configs, or in old files a mapping of them by name."""
    node = top.values.get("data_configs")
    if node is not None and isinstance(node.value, dict):
        by_name = top.child("data_configs")
        for name in by_name.values if by_name else ():
            if by_name and (one := by_name.child(name)) is not None:
                yield one, name
        return
    for one in top.children("data_configs"):
        yield one, ""
