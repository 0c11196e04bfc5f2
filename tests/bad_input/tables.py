"""The good inputs that the bad ones differ from."""

GOOD = """\
name: demo
params:
  data: rows.jsonl
  rank: 8
  method: train-lora
store: .runner/store
target: process
targets:
  box: {type: docker, secrets: [HF_TOKEN]}
  far: {type: kubernetes, namespace: ml}
  sky: {type: azureml, tier: spot}
stages:
  data:
    uses: prepare-data
    inputs: {source: "${{ params.data }}", model: model}
    params: {template: "{phrase} {tone}", max_length: 64, test_fraction: 0.1}
  adapter:
    uses: "${{ params.method }}"
    inputs: {dataset: "${{ stages.data.dataset }}", base_model: model}
    params: {rank: "${{ params.rank }}", learning_rate: 1e-3, schedule: cosine, dora: false}
    resources: {gpus: 0, memory: 4GiB, cpus: 1}
    retry: {attempts: 2, backoff: 1s, on: [75, timeout]}
    timeout: 2h
  merged:
    uses: merge
    inputs: {base_model: model, adapter: "${{ stages.adapter.adapter }}"}
  onnx:
    uses: build-onnx
    inputs: {model: "${{ stages.merged.model }}", dataset: "${{ stages.data.dataset }}"}
    matrix: {precision: [int4, int8]}
  quantized:
    uses: infer
    inputs: {model: "${{ stages.onnx.model }}", dataset: "${{ stages.data.dataset }}"}
    params: {max_new_tokens: 8}
  best:
    select: {from: quantized, take: onnx, maximize: accuracy, where: {size_mb: {max: 50}}}
"""

PLAIN = """\
{
  "schema": 1, "name": "own", "version": "1", "summary": "Writes a file.",
  "command": ["sh", "./run.sh"], "code": ["."], "manifest": "runner",
  "inputs": {"text": {"flag": "--text", "kinds": ["files"]}},
  "outputs": {"out": {"flag": "--out", "kind": "dataset"}},
  "params": {"n": {"flag": "--n", "type": "integer", "default": 1, "min": 0}}
}
"""
