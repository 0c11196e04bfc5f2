"""Writes the weights of a plan: the base's files in its order, each once, hashed on the way."""

from __future__ import annotations

from microstages.artifact import Draft
from microstages.reporting import Reporter
from microstages.tensors import INDEX, SINGLE, HashingWriter, Weights, header

from microstages_merge.compute import Sources, run
from microstages_merge.files import index
from microstages_merge.recipe import Plan


def write_weights(plan: Plan, weights: tuple[Weights, Weights], output: Draft, report: Reporter, threads: int) -> None:
    """Write every file of a plan, from the weights of base and adapter, and the index where the base has one."""
    base, sources = weights[0], Sources(*weights)
    with report.progress("merging", sum(r.nbytes for r in plan.recipes), "bytes") as progress:
        for shard in base.shards:
            name, recipes = shard.file.name, plan.files[shard.file.name]
            layout = [(r.name, r.dtype, r.shape) for r in recipes]
            as_before = layout == [(t.name, t.dtype, t.shape) for t in shard.tensors]
            first = shard.header if as_before else header(layout, shard.metadata)
            with HashingWriter(output.path / name, len(first) + sum(r.nbytes for r in recipes)) as out:
                out.write(first)
                for piece in run(recipes, sources, threads, out.size, out.write_at):
                    out.written(piece)
                    progress.advance(len(piece))
            output.hashed(name, out.sha256)
    file = base.shards[0].file
    if file.name != SINGLE:
        (output.path / INDEX).write_bytes(index(file.parent / INDEX, plan))
