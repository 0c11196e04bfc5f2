"""Record what Olive trains with where a config says nothing, from its own source: `recorded_defaults.json`.

pip download --no-deps olive-ai==0.6.2 olive-ai==0.13.0, unpack each into a folder, then in tests/:
python -m olive.record A FOLDER olive/recorded_defaults.json; … B …
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

CLASSES = {"A": ["HFTrainingArguments"], "B": ["BaseHFTrainingArguments", "HFTrainingArguments"]}
PASS = {"A": ("lora_r", "lora_alpha", "lora_dropout"), "B": ("r", "alpha", "lora_dropout")}


def defaults(source: Path, generation: str) -> dict[str, Any]:
    """Olive's own defaults of training arguments and of the pass LoRA; what is None is left to the Trainer."""
    found: dict[str, Any] = {}
    trees = [ast.parse((source / f).read_text()) for f in ("train_utils.py", "lora.py") if (source / f).exists()]
    for name in CLASSES[generation]:
        for tree in trees:
            for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name):
                for line in (n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.value, ast.Call)):
                    assert isinstance(line.target, ast.Name) and isinstance(line.value, ast.Call)
                    found[line.target.id] = ast.literal_eval(line.value.args[0])
    for tree in trees:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Dict):
                continue
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in PASS[generation] and isinstance(value, ast.Call):
                    for word in value.keywords:
                        if word.arg == "default_value":
                            found.setdefault(str(key.value), ast.literal_eval(word.value))
    return {k: v for k, v in found.items() if v is not None}


if __name__ == "__main__":
    generation, folder, file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    recorded = json.loads(file.read_text()) if file.exists() else {}
    recorded[generation] = defaults(folder / "olive" / "passes" / "pytorch", generation)
    file.write_text(json.dumps(dict(sorted(recorded.items())), indent=1) + "\n")
