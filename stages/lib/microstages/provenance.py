"""What ran: versions of the software that this process has loaded, and the machine under it."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any


def software() -> dict[str, str]:
    """Python and the versions of the packages that this process has loaded."""
    from importlib.metadata import PackageNotFoundError, version

    tops = {m.partition(".")[0] for m in list(sys.modules)}
    known = [
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "tokenizers",
        "safetensors",
        "numpy",
        "ml_dtypes",
        "onnxruntime",
        "onnxruntime_genai",
        "onnx",
        "pyarrow",
        "jinja2",
        "fsspec",
        "accelerate",
        "microstages",
    ]
    out = {"python": platform.python_version()}
    if image := os.environ.get("MICROSTAGES_IMAGE"):  # said by who started the container
        out["image"] = image
    for name in known:
        if name in tops:
            try:
                out[name] = version(name)
            except PackageNotFoundError:
                out[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return out


def hardware() -> dict[str, Any]:
    """Processor, cores, memory, and the GPUs where torch is loaded and has some."""
    out: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    try:
        out["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/cpuinfo") as f:
            out["processor"] = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, ValueError, StopIteration):
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        out["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return out
