"""Record what Olive itself makes of the cases in `cases.py`: number and sha256 of its sequences and labels.

pip install --no-deps olive-ai==0.6.2 (generation A), olive-ai==0.13.0 (B); besides: torch, transformers, datasets,
pydantic, pyyaml, opentelemetry-sdk
python -m olive_data.record A olive_data/recorded.json   (in tests/, with Olive of that generation); … B …
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from olive_data.cases import CASES, Case, rows

ROOT = Path(__file__).parents[2]


def digest(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> str:
    """Of tokens and labels; the first label, which nothing predicts, left out."""
    text = json.dumps([[list(ids), list(labels)[1:]] for ids, labels in sequences])
    return hashlib.sha256(text.encode()).hexdigest()


def made_by_olive(case: Case, folder: Path) -> dict[str, Any]:
    """Load, preprocess and split as the LoRA pass does."""
    from datasets import Dataset, load_dataset
    from olive.data.component import pre_process_data

    if "_plain" not in vars(Dataset):  # generation A was written for versions whose columns were lists
        Dataset._plain = Dataset.__getitem__
        Dataset.__getitem__ = lambda self, key: (
            list(Dataset._plain(self, key)) if isinstance(key, str) else Dataset._plain(self, key)
        )
    file = folder / "rows.json"
    shared = ROOT.parent / "shared"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows(case.data, ROOT / "examples", shared)))
    model = folder / "model"
    shutil.copytree(ROOT / "examples" / "tiny-phi3", model, ignore=shutil.ignore_patterns("*.safetensors"))
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({k: v for k, v in {**json.loads(config.read_text()), **case.tokenizer}.items()
                                  if v is not None}))  # fmt: skip
    dataset = load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "cache"))
    name = "text_generation_huggingface_pre_process"
    processed = getattr(pre_process_data, name)(dataset, model_name=str(model), **case.olive())
    made = processed.data.select(range(len(processed)))
    parts = {"train": made}
    if case.eval_size is not None:
        size = int(case.eval_size) if case.eval_size >= 1 else case.eval_size
        parts = made.train_test_split(test_size=size, shuffle=True, seed=42)
    out: dict[str, Any] = {}
    for split, part in sorted(parts.items()):
        found = part.with_format(None)
        pairs = list(zip(found["input_ids"], found["labels"], strict=True))
        out[split] = {"sequences": len(pairs), "sha256": digest(pairs)}
    return out


def main() -> None:
    generation, output = sys.argv[1], Path(sys.argv[2])
    recorded = json.loads(output.read_text()) if output.exists() else {}
    for name, case in CASES.items():
        if case.generation == generation:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    recorded[name] = made_by_olive(case, Path(folder))
                except Exception as error:
                    recorded[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    output.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
