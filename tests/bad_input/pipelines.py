"""Mistakes in pipeline files: what is replaced in the good one, by what, the text that is pointed at, the remedy.

A text that begins with ^ is looked for from the beginning of the file, any other from where the mistake is.
"""

from __future__ import annotations

import re

from bad_input.harness import Case
from bad_input.tables import GOOD

# name, old, new, where, remedy
MISTAKES: list[tuple[str, str, str, str, str]] = [
    # text that is no YAML
    ("a quote that is not closed", "name: demo", 'name: "demo', '"demo', "close it on the same line"),
    ("a single quote that is not closed", "name: demo", "name: 'demo", "'demo", "close it on the same line"),
    ("a colon in a text", "name: demo", "name: demo: two", ": two", "quote a text with"),
    ("an at sign", "name: demo", "name: @demo", "@", "quote a text that begins with @"),
    ("a backtick", "name: demo", "name: `demo`", "`", "quote a text that begins with `"),
    ("a percent sign", "name: demo", "name: %demo", "%", "quote a text that begins with %"),
    ("a tab before a key", "  rank: 8", "\trank: 8", "\t", "use spaces"),
    ("a tab between keys", "    uses: merge", "\tuses: merge", "\t", "use spaces"),
    ("a reference without quotes", '{source: "${{ params.data }}"', "{source: ${{ params.data }}", "${{",
     r'write it as "\$\{\{ params.data'),
    ("a bracket that is not closed", "[75, timeout]", "[75, timeout", "}", "close the bracket"),
    ("a brace that is not closed", "{max_new_tokens: 8}", "{max_new_tokens: 8", ":\n    sel", "bracket is opened at"),
    ("a comma that is missing", "rows.jsonl\n", "rows.jsonl\n  list: [a b: c]\n", "[", "."),
    ("an alias of nothing", "name: demo", "name: *demo", "*demo", "quote a text that begins with"),
    ("two documents", "params:\n", "---\nparams:\n", "---", "remove the line ---"),
    ("a dash among keys", "store: .r", "- x\nstore: .r", "- x", "indentation"),
    ("a key less indented", "    uses: merge", " uses: merge", "uses: merge", "indentation"),
    ("a tag", "name: demo", "name: !env demo", "!env", "remove it"),
    ("a merge key", "  data: rows", "  <<: {a: b}\n  data: rows", "<<", "repeat the values"),
    ("a list as a key", "name: demo", "[a]: demo", "[a]", "key: value"),
    ("a control character", "name: demo", "name: de\x07mo", "\x07", "remove it"),
    # keys
    ("an unknown key", "name: demo", "nmae: demo", "nmae", "known keys: name"),
    ("the key `stage`", "stages:\n", "stage:\n", "stage:", "known keys"),
    ("an unknown key of a stage", "timeout: 2h", "timeot: 2h", "timeot", "known keys"),
    ("`use`", "uses: merge", "use: merge", "use:", "known keys"),
    ("`with`, of another system", "    params: {max_new", "    with: {max_new", "with", "known keys"),
    ("`needs`, of another system", "    timeout: 2h", "    needs: [data]", "needs",
     "references in its inputs make the order"),
    ("a stage without uses", "    uses: merge\n", "", "^merged", "add `uses:"),
    ("a key twice", "store: .r", "name: again\nstore: .r", "name: again", "remove one"),
    ("a stage twice", "  merged:\n", "  adapter:\n", "adapter:", "remove one"),
    ("a stage with a capital", "  merged:\n", "  Merged:\n", "Merged", "small letters"),
    ("a stage with a space", "  merged:\n", "  my merge:\n", "my merge", "small letters"),
    ("a stage that is text", "  best:\n", "  x: merge\n  best:\n", "merge", "in its place write {uses: merge}"),
    ("an unknown resource", "gpus: 0", "gpu: 0", "gpu:", "known keys: gpus"),
    ("an unknown key of retry", "attempts: 2", "tries: 2", "tries", "known keys: attempts"),
    ("an unknown key of select", "maximize: accuracy", "maximise: accuracy", "maximise", "known keys: from"),
    ("an unknown option of docker", "secrets: [HF_TOKEN]", "secret: [HF_TOKEN]", "secret: [", "known keys: type"),
    ("an unknown option of kubernetes", "namespace: ml", "name_space: ml", "name_space", "known keys: type"),
    ("an unknown option of azureml", "tier: spot", "teir: spot", "teir", "known keys: type"),
    # types
    ("a number as name", "name: demo", "name: 3", "3", 'write "3" in quotes'),
    ("an empty store", "store: .runner/store", "store:", "\ntarget", "leave the key out"),
    ("a mapping as parameter", "rank: 8", "rank: {a: 8}", "{a", "a parameter is"),
    ("a list in a list as parameter", "rank: 8", "rank: [[8]]", "[[8", "list of words"),
    ("a reference in a parameter", "rank: 8", 'rank: "${{ params.data }}"', '"${{', "."),
    ("gpus as a word", "gpus: 0", "gpus: one", "one", "write gpus: 1"),
    ("half a GPU", "gpus: 0", "gpus: 0.5", "0.5", "write gpus: 1"),
    ("memory with an unknown unit", "4GiB", "4 gigs", "4 gigs", "write memory: 48GiB"),
    ("no memory", "4GiB", "0", "0", "write memory: 48GiB"),
    ("a negative number of cores", "cpus: 1", "cpus: -1", "-1", "write cpus: 2"),
    ("a time with an unknown unit", "timeout: 2h", "timeout: 2 hours", "2 hours", "write timeout: 2h"),
    ("a time of nothing", "timeout: 2h", "timeout: 0", "0", "write timeout: 30min"),
    ("attempts below one", "attempts: 2", "attempts: 0", "0", "attempts: 1"),
    ("a pause that is a word", "backoff: 1s", "backoff: soon", "soon", "write backoff: 2s"),
    ("a retry after the caller's mistake", "[75, timeout]", "[2]", "2", "exit codes from 1"),
    ("a retry after a word", "[75, timeout]", "[late]", "late", "exit codes from 1"),
    ("one exit code that is no list", "[75, timeout]", "75", "75", "exit codes from 1"),
    ("retry and retries", "    timeout: 2h", "    retries: 1", "1", "attempts"),
    ("inputs as a list", '{base_model: model, adapter: "${{ stages.adapter.adapter }}"}', "[model]", "[model]",
     "key: value"),
    ("params as text", "params: {max_new_tokens: 8}", "params: max_new_tokens=8", "max_new", "key: value"),
    ("a stage as a list", "  best:\n", "  x: [merge]\n  best:\n", "[merge]", "{uses: merge}"),
    # stages
    ("an unknown stage", "uses: merge", "uses: mrege", "mrege", "there are: .*merge"),
    ("a stage of another spelling", "uses: prepare-data", "uses: prepare_data", "prepare_data", "there are"),
    ("a folder that is not there", "uses: merge", "uses: ./mine", "./mine", "interface.json"),
    ("a folder without an interface", "uses: merge", "uses: ./empty", "./empty", "interface.json"),
    ("a folder without ./", "uses: merge", "uses: own", "own", r"write \./ before"),
    ("an image without an engine", "uses: merge", "uses: ghcr.io/me/x:1", "ghcr", "DOCKER_HOST|start it|install"),
    ("uses of a parameter that is no stage", "method: train-lora", "method: train", "train",
     r"there are.*params.method is used at pipeline.yaml:18:11"),
    # references
    ("an unknown parameter", "params.data }}", "params.dta }}", '^"${{ params.dta', "parameters: data"),
    ("a reference to an unknown stage", "stages.data.dataset", "stages.dtaa.dataset", '^"${{ stages.dtaa',
     "stages: data"),
    ("a reference to an unknown output", "stages.adapter.adapter", "stages.adapter.adaptor",
     '^"${{ stages.adapter.adaptor',
     "its outputs: adapter"),
    ("a reference to a whole stage", "${{ stages.adapter.adapter }}", "${{ stages.adapter }}", '^"${{ stages.adapter }',
     "NAME.OUTPUT"),
    ("a reference inside a path", '"${{ stages.adapter.adapter }}"', '"x/${{ stages.adapter.adapter }}"', '"x/',
     "NAME.OUTP"),
    ("a reference to the environment", "${{ params.rank }}", "${{ env.RANK }}", '^"${{ env', r"params\.NAME"),
    ("a reference that is not closed", "${{ params.rank }}", "${{ params.rank", '^"${{ params.rank"', "write"),
    ("an output as a parameter", "${{ params.rank }}", "${{ stages.data.dataset }}",
     '^"${{ stages.data.dataset }}", lea', "only be inputs"),
    ("a matrix key that is not there", "{base_model: model, adapter", '{base_model: "${{ matrix.base }}", adapter',
     '"${{ matrix.base', "known: "),
    ("a ring", 'source: "${{ params.data }}"', 'source: "${{ stages.adapter.adapter }}"', "^data:\n    uses",
     "stages before"),
    # inputs
    ("an unknown input", "base_model: model, adapter", "base: model, base_model: model, adapter", "base:",
     "its inputs"),
    ("an input that is missing", "inputs: {base_model: model, adapter", "inputs: {adapter", "^merged",
     "add it below.*base_model: FOLDER, or"),
    ("an input of a wrong kind", "stages.adapter.adapter", "stages.data.dataset",
     '^"${{ stages.data.dataset }}"}\n  onnx',
     "of that kind"),
    ("an input that is a number", "base_model: model, adapter", "base_model: 3, adapter", "3", "quote it"),
    ("an input that is empty", "base_model: model, adapter", "base_model: , adapter", ", adap", "give model"),
    ("an input that is empty text", "base_model: model, adapter", "base_model: '', adapter", "''", "give a path"),
    ("data that is not there", "rows.jsonl", "row.jsonl", "row.jsonl", "check the path.*; params.data is used"),
    ("a model that is not there", "base_model: model, adapter", "base_model: modle, adapter", "modle",
     "check the path"),
    ("a file as a model", "base_model: model, adapter", "base_model: rows.jsonl, adapter", "rows", "give the folder"),
    ("an adapter as a model", "base_model: model, adapter", "base_model: adapter, adapter", "adapter",
     "give one of kind model"),
    ("an empty folder as a model", "base_model: model, adapter", "base_model: empty, adapter", "empty", "check"),
    ("a pattern without a match", "rows.jsonl", "'*.tsv'", "'*.tsv'",
     "correct the pattern; the folder has .*other.yaml.*; params.data is used at pipeline.yaml:15:22"),
    # parameters
    ("an unknown parameter of a stage", "learning_rate: 1e-3", "learning_rat: 1e-3", "learning_rat", "runner explain"),
    ("a parameter of another stage", "max_new_tokens: 8", "rank: 8", "rank", "runner explain infer"),
    ("a parameter that is an input", "max_new_tokens: 8", "adapter: x", "adapter: x", "move it below `inputs:`"),
    ("a word for a number", "max_length: 64", "max_length: long", "long", "write max_length: 2"),
    ("a number below the least", "max_length: 64", "max_length: 1", "1,", "write max_length: 2"),
    ("a share above one", "test_fraction: 0.1", "test_fraction: 1.1", "1.1", "write test_fraction: 0.1"),
    ("a choice misspelled", "schedule: cosine", "schedule: cosin", "cosin", "write schedule: cosine"),
    ("yes for true", "dora: false", "dora: yes", "yes", "write dora: false"),
    ("a list for a text", 'template: "{phrase} {tone}"', "template: [a, b]", "[a", "write template"),
    ("text for a list", "dora: false", "target_modules: qkv_proj", "qkv_proj", r"write target_modules: \["),
    ("nan for a number", "learning_rate: 1e-3", "learning_rate: .nan", ".nan", "write learning_rate: 0.0002"),
    ("a value of the pipeline's parameters", "  rank: 8", "  rank: 0", "0",
     r"write rank: .*params.rank is used at pipeline.yaml:20:20"),
    # targets
    ("an unknown target", "target: process", "target: boxx", "boxx", "targets: auto"),
    ("a target of an unknown type", "type: docker", "type: dokcer", "dokcer", "known types|types"),
    ("a target without a type", "{type: docker, secrets", "{secrets", "{secrets", "type"),
    ("a cluster and a local store", "target: process", "target: far", "^.runner/store", "store: abfs://"),
    ("a tier that is not there", "tier: spot", "tier: cheap", "cheap", "spot is"),
    ("secrets with a value", "[HF_TOKEN]", "[HF_TOKEN=hf_abcdefgh1234]", "[HF", "never stands here"),
    # matrices and selections
    ("a matrix of a word", "precision: [int4, int8]", "precision: int4", "int4", r"\[one, another\]"),
    ("an empty matrix", "matrix: {precision: [int4, int8]}", "matrix: {}", "{}", "matrix: {rank"),
    ("a matrix of an unknown parameter", "{precision: [int4, int8]}", "{precison: [int4, int8]}", "precison",
     "runner expl"),
    ("a matrix of an unknown value", "[int4, int8]", "[int4, int3]", "int3", "write precision: int8"),
    ("a matrix that excludes all", "[int4, int8]}", "[int4], exclude: [{precision: int4}]}", "^{precision: [int4]",
     "exclude less"),
    ("a selection from nothing", "from: quantized", "from: quantised", "quantised", "stages with variants: "),
    ("a selection without a goal", ", maximize: accuracy", "", "^{from", "write `maximize"),
    ("a selection with two goals", "maximize: accuracy", "maximize: a, minimize: b", "^{from", "write `maximize"),
    ("a limit that is a word", "{max: 50}", "{max: big}", "big", "where: {size_mb"),
    ("a selection with uses", "    select: {", "    uses: infer\n    select: {", "uses", "."),
]  # fmt: skip


def case(name: str, old: str, new: str, where: str, remedy: str) -> Case:
    """The case of a mistake."""
    assert old in GOOD, name
    text = GOOD.replace(old, new, 1)
    start = 0 if where.startswith("^") else GOOD.index(old)
    at = text.index(where.removeprefix("^"), start)
    line, column = text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1
    place = rf"^pipeline\.yaml:{line}:{column}: "
    return Case(f"pipeline: {name}", ("runner", "plan"), place, remedy, {"pipeline.yaml": text})


# files that are no pipeline: bytes, place, remedy
FILES: list[tuple[str, bytes, str, str]] = [
    ("an empty file", b"", "pipeline.yaml:1:1", "runner init"),
    ("only a comment", b"# soon\n", "pipeline.yaml:1:1", "runner init"),
    ("a list", b"- a\n", "pipeline.yaml:1:1", "runner init"),
    ("a text", b"hello\n", "pipeline.yaml:1:1", "runner init"),
    ("no stages", b"name: x\n", "pipeline.yaml:1:1", "add `stages:`"),
    ("empty stages", b"stages:\n", "pipeline.yaml:1:1", "^  write one below it, such as `merged: {uses: merge}`"),
    ("Latin-1", b"name: caf\xe9\n", "pipeline.yaml:1:10", "save the file as UTF-8"),
    ("UTF-16", "name: x\n".encode("utf-16"), "pipeline.yaml:1:1", "UTF-16"),
    ("a binary file", b"\x7fELF\x00\x01", "pipeline.yaml:1:", "."),
    ("JSON that is cut off", b'{"stages": {"a": {"uses": "merge"', "pipeline.yaml:1:", "bracket|quote|comma"),
    ("an alias that contains itself", b"params: &a [*a]\n", "pipeline.yaml:1:9|pipeline.yaml:1:13",
     "write the value out"),
    ("brackets without end", b"stages: " + b"[" * 3000 + b"]" * 3000, "pipeline.yaml:1:", "six levels"),
]  # fmt: skip

SETTINGS: list[tuple[str, str, str, str]] = [
    ("an unknown parameter", "params.dta=x", "^--set params.dta: there is no parameter 'dta'", "there are: data"),
    ("an unknown stage", "stages.mergd.params.dtype=base", "there is no stage 'mergd' .did you mean 'merged'",
     "there are: data"),
    ("an unknown key", "stages.merged.parms.dtype=base", "unknown key 'parms'.*did you mean 'params'", "known keys"),
    ("an unknown key of the pipeline", "stor=x", "unknown key 'stor'.*'store'", "known keys: name"),
    ("no value", "params.data", "this is not KEY=VALUE: there is no =", "params.rank=8"),
    ("no key", "=x", "this is not KEY=VALUE: the key is missing", "params.rank=8 or --set target="),
    ("an empty word in the key", "params..data=x", "this is not KEY=VALUE: there is an empty word", "params.rank=8"),
    ("a bracket that is not closed", "stages.adapter.params.target_modules=[a", "this is not YAML",
     "close the bracket"),
    ("a quote that is not closed", "params.data='x", "this is not YAML", "close the quote"),
    ("a value of a wrong type", "stages.adapter.params.rank=many", "rank must be a whole number.*'many'",
     "write rank: 16"),
    ("a value below the least", "stages.adapter.params.rank=0", "rank must be a whole number at least 1",
     "write rank: 16"),
    ("a choice misspelled", "stages.merged.params.dtype=fp23", "dtype must be one of.*did you mean 'fp32'",
     "write dtype"),
    ("a key in a text", "name.first=x", "'first' cannot be set in text", "check the path"),
    ("a data file that is not there", "stages.data.inputs.source=row.jsonl", "did you mean 'rows.jsonl'",
     "check the path"),
    ("an unknown resource", "stages.adapter.resources={gpu: 1}", "unknown key 'gpu'", "known keys: gpus"),
    ("a time of no unit", "stages.adapter.timeout=2 weeks", "timeout must be above 0", "write timeout"),
    ("a target that is not there", "target=bxo", "there is no target 'bxo' .did you mean 'box'", "targets: "),
    ("a parameter that nothing uses", "params.extra=1", "there is no parameter 'extra'", "there are: data"),
    ("an unknown target's option", "targets.far.queu=x", "unknown key 'queu'.*'queue'", "known keys"),
]  # fmt: skip

CASES = [
    *(case(*m) for m in MISTAKES),
    *(Case(f"file: {n}", ("runner", "plan"), rf"^({p})", r, {"pipeline.yaml": d}) for n, d, p, r in FILES),
    *(Case(f"--set: {n}", ("runner", "plan", "--set", s), p, r) for n, s, p, r in SETTINGS),
]


def mutated() -> list[Case]:
    """Each key of the good pipeline with two letters exchanged: it is named, with its right spelling."""
    found = []
    keys = dict.fromkeys(re.findall(r"^ *([a-z_]{4,}):|[{,] ?([a-z_]{4,}):", GOOD, flags=re.M))
    own = {"demo", "data", "rank", "method", "adapter", "merged", "onnx", "quantized", "best", "size_mb"}
    for word in dict.fromkeys(a or b for a, b in keys):
        if word in own:
            continue
        wrong = (
            word[:1] + word[2] + word[1] + word[3:] if word[1] != word[2] else word[:2] + word[3] + word[2] + word[4:]
        )
        pattern = re.compile(rf"(^ *|[{{,] ?){word}:", re.M)
        m = pattern.search(GOOD)
        assert m
        text = GOOD[: m.end() - len(word) - 1] + wrong + GOOD[m.end() - 1 :]
        at = m.end() - len(word) - 1
        line = text.count("\n", 0, at) + 1
        place = rf"^pipeline\.yaml:\d+:\d+: .*'{wrong}'.*did you mean '{word}'"
        found.append(
            Case(f"letters exchanged: {word}, line {line}", ("runner", "check"), place, ".", {"pipeline.yaml": text})
        )
    return found
