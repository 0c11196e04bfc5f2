"""Flags of each stage: wrong words, wrong values, flags that do not go together."""

from __future__ import annotations

from bad_input.harness import Case

PREPARE = ("prepare-data", "--source", "rows.jsonl", "--model", "model", "--output", "out")
TEXT = ("--template", "{phrase} {tone}")
TRAIN = ("train-lora", "--dataset", "dataset", "--base-model", "model", "--output", "out")
QLORA = ("train-qlora", *TRAIN[1:])
MERGE = ("merge", "--base-model", "model", "--adapter", "adapter", "--output", "out")
BUILD = ("build-onnx", "--model", "model", "--output", "out")
INFER = ("infer", "--model", "model")
ASK = (*INFER, "--prompt", "hello")
MANY = (*INFER, "--dataset", "dataset", "--output", "out")

USUAL = "leave it out for the usual value, "  # where a parameter has one


def without(command: tuple[str, ...], flag: str) -> tuple[str, ...]:
    at = command.index(flag)
    return command[:at] + command[at + 2 :]


def put(command: tuple[str, ...], flag: str, value: str) -> tuple[str, ...]:
    return (*without(command, flag), flag, value)


# name, command, what the first line says, the remedy
TABLE: list[tuple[str, tuple[str, ...], str, str]] = [
    # words
    ("a flag misspelled", (*PREPARE, "--tempalte", "x"), "there is no flag --tempalte", "did you mean --template\\?"),
    ("a flag of another stage", (*MERGE, "--rank", "8"), "--rank", "merge --help"),
    ("a flag without its value", (*TRAIN, "--rank"), "--rank", "train-lora --help"),
    ("a word too many", (*MERGE, "now"), "now", "merge --help"),
    ("no input", without(MERGE, "--adapter"), "--adapter", "merge --help"),
    ("no output", without(BUILD, "--output"), "--output", "build-onnx --help"),
    ("nothing at all", ("train-lora",), "--dataset, --base-model and --output are missing", "add --dataset URI "),
    # values
    ("a word for a number", (*TRAIN, "--rank", "many"), "--rank: must be a whole number .*'many'", USUAL),
    ("half of a number", (*TRAIN, "--rank=1.5"), "--rank: must be a whole number .*'1.5'", USUAL),
    ("flags behind --", ("merge", "--", "--base-model", "model"), "--base-model, --adapter and --output are", "add "),
    ("a value where none is wanted", (*TRAIN, "--dora=maybe"), "--dora: it takes no value", "--no-dora"),
    ("rank 0", (*TRAIN, "--rank", "0"), "--rank: must be a whole number at least 1, not 0", USUAL),
    ("a learning rate of 0", (*TRAIN, "--learning-rate", "0"), "--learning-rate: .* above 0, not 0", USUAL),
    ("a learning rate of nan", (*TRAIN, "--learning-rate", "nan"), "--learning-rate: .* not nan", USUAL),
    ("an endless number of epochs", (*TRAIN, "--epochs", "inf"), "--epochs: .* not inf", USUAL),
    ("all dropped out", (*TRAIN, "--dropout", "1"), "--dropout: .* below 1", USUAL),
    ("a schedule misspelled", (*TRAIN, "--schedule", "cosin"), "--schedule: .*did you mean 'cosine'", USUAL),
    ("a precision that training has not", (*TRAIN, "--precision", "fp16"), "--precision: .*auto, bf16, fp32", USUAL),
    ("a seed below 0", (*TRAIN, "--seed", "-1"), "--seed: .* at least 0", USUAL),
    ("a 4-bit type that is not there", (*QLORA, "--quant-type", "int4"), "--quant-type: .*nf4, fp4", USUAL),
    ("no checkpoints kept", (*QLORA, "--checkpoints-kept", "0"), "--checkpoints-kept: .*at least 1", USUAL),
    ("a type that merge has not", (*MERGE, "--dtype", "int8"), "--dtype: .*base, bf16, fp16, fp32", USUAL),
    ("a base misspelled", (*MERGE, "--base", "orignal"), "--base: .*did you mean 'original'", USUAL),
    ("too many threads", (*MERGE, "--threads", "1000"), "--threads: .*at most 256", USUAL),
    ("a precision of no ONNX", (*BUILD, "--precision", "int3"), "--precision: .*int4", USUAL),
    ("a provider of another name", (*BUILD, "--execution-provider", "gpu"), "--execution-provider: .*cuda", USUAL),
    ("blocks too large", (*BUILD, "--block-size", "512"), "--block-size: .*at most 256", USUAL),
    ("a strategy misspelled", (*PREPARE, "--strategy", "pak"), "--strategy: .*did you mean 'pack'", USUAL),
    ("everything held out", (*PREPARE, "--test-fraction", "1"), "--test-fraction: .*below 1", USUAL),
    ("no workers", (*PREPARE, "--workers", "0"), "--workers: .*at least 1", "--help"),
    ("a temperature below 0", (*ASK, "--temperature", "-1"), "--temperature: .*at least 0", USUAL),
    ("a share of no tokens", (*ASK, "--top-p", "0"), "--top-p: .*above 0", "--help"),
    ("a batch of no rows", (*MANY, "--batch-size", "0"), "--batch-size: .*at least 1", USUAL),
    ("a metric that is not there", (*MANY, "--metric", "acuracy"), "--metric: .*exact_match", USUAL),
    ("a device of another name", (*ASK, "--device", "gpu"), "--device: .*auto, cpu, cuda", USUAL),
    # flags that do not go together
    ("nothing to answer", INFER, "there is nothing to answer", "give one of --dataset"),
    ("two things to answer", (*ASK, "--chat"), "--prompt and --chat are given", "give one of"),
    ("rows without an output", without(MANY, "--output"), "--dataset: there is no place", "give --output"),
    ("a chat with an output", (*INFER, "--chat", "--output", "out"), "--output: a chat writes no", "leave it out"),
    ("draws at temperature 0", (*ASK, "--top-k", "5"), "--top-k: nothing is drawn", "--temperature above 0"),
    ("a system message for a bare prompt", (*ASK, "--system", "x"), "--system: a system message needs",
     "leave --system out"),
    ("an empty prompt", (*INFER, "--prompt", " "), "--prompt: the prompt is empty", "say something"),
    ("a limit of one prompt", (*ASK, "--limit", "3"), "--limit: there are no rows", "leave it out"),
    ("an empty stop text", (*ASK, "--stop", ""), "--stop: a stop text must not be empty", "leave it out"),
    ("a template and fields", (*PREPARE, *TEXT, "--messages-field", "phrase"), "exclude each other|--", "."),
    ("a prompt field alone", (*PREPARE, "--prompt-field", "phrase"), "--completion-field: ", "."),
    ("a completion without a template", (*PREPARE, "--completion", "tone"), "--completion: .* there is no template",
     "give --template"),
    ("a joiner for packing", (*PREPARE, *TEXT, "--joiner", " "), "--joiner: rows are joined only", "."),
    ("blocks of 48", (*BUILD, "--block-size", "48"), "--block-size: 48 is not a power of two", "."),
    ("bf16 on a CPU", (*BUILD, "--precision", "bf16"), "--precision: bf16 does not run on cpu", "."),
    ("an option of the builder misspelled", (*BUILD, "--extra-options", "fuse_qkvs=true"), "did you mean 'fuse_qkv'",
     "."),
    ("an option that runs code", (*BUILD, "--extra-options", "hf_remote=true"), "--extra-options: hf_remote",
     "never run"),
    ("no layer left", (*BUILD, "--exclude-lm-head", "--include-hidden-states"), "use one of|--", "."),
    ("quantization of the original", (*MERGE, "--base", "original", "--quant-type", "nf4"), "--quant-type: ",
     "dequantized"),
]  # fmt: skip

CASES = [Case(f"{command[0]}: {name}", command, place, remedy) for name, command, place, remedy in TABLE]
