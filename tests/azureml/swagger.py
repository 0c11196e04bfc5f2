"""Microsoft's swagger as strict JSON Schemas: no key that it does not name, no type or word that it does not allow.

`allOf` is flattened, a definition with a discriminator becomes the one that the discriminator names, and what is
read-only may not be sent.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

RESOURCE = ("id", "name", "type", "systemData")  # of common-types, read-only


class Swagger:
    def __init__(self, file: Path) -> None:
        self.definitions: dict[str, Any] = json.loads(file.read_text())["definitions"]
        self.kinds: dict[tuple[str, str], str] = {}
        for name, found in self.definitions.items():
            if value := found.get("x-ms-discriminator-value"):
                for base in self._bases(name):
                    self.kinds[base, value] = name

    def _bases(self, name: str) -> list[str]:
        out = []
        for part in self.definitions[name].get("allOf", []):
            base = part["$ref"].rpartition("/")[2]
            if base in self.definitions:
                out += [base, *self._bases(base)]
        return out

    def wrong(self, definition: str, value: Any) -> str:
        """What is wrong with a request's body, or the empty string."""
        schema = self.schema(definition, value)
        errors = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).iter_errors(value)
        return "; ".join(f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in errors)

    def schema(self, name: str, value: Any) -> dict[str, Any]:
        """The schema of a definition, for this value: the discriminators in it say which."""
        found = self.definitions[name]
        if (key := found.get("discriminator")) and isinstance(value, dict):
            name = self.kinds.get((name, str(value.get(key))), name)
            found = self.definitions[name]
        if "enum" in found:
            return {"enum": found["enum"]}
        properties: dict[str, Any] = {}
        required: set[str] = set()
        for part in [name, *self._bases(name)]:
            properties = {**self.definitions[part].get("properties", {}), **properties}
            required |= set(self.definitions[part].get("required", []))
        out: dict[str, Any] = {"type": "object", "required": sorted(required), "properties": {}}
        out["additionalProperties"] = False
        for key, spec in properties.items():
            if not spec.get("readOnly"):
                inner = value.get(key) if isinstance(value, dict) else None
                out["properties"][key] = self._value(spec, inner)
        return out

    def _value(self, spec: dict[str, Any], value: Any) -> dict[str, Any]:
        if "$ref" in spec:
            name = spec["$ref"].rpartition("/")[2]
            out = self.schema(name, value) if name in self.definitions else {}
        elif spec.get("type") == "array":
            out = {"type": "array", "items": self._value(spec["items"], None)}
        elif "additionalProperties" in spec and isinstance(spec["additionalProperties"], dict):
            inner = spec["additionalProperties"]
            items = value if isinstance(value, dict) else {}
            out = {"type": "object", "properties": {k: self._value(inner, v) for k, v in items.items()}}
        else:
            out = {k: spec[k] for k in ("type", "pattern", "enum", "minLength", "maxLength", "format") if k in spec}
        return {"anyOf": [out, {"type": "null"}]} if spec.get("x-nullable") else out
