"""Rows of an ONNX model.

ONNX Runtime GenAI's generators cannot take a row in or let one go, and its `Engine` on a CPU begins a batch only when
the last one has ended (0.18). So on a CPU the model's graph is run by ONNX Runtime itself. Keys and values lie in
buffers that are input and output at once (rows, heads, capacity, width), each row from its beginning on; rows are
contiguous, so that a new one is filled beside the others and a step runs over the first n. The attention operator of
such models finds each row's place by the sums of the attention mask.

Whether a model is such a one is tried, not believed: two rows of unlike length must say what each says alone. Where
they do not, and on other devices, each row has a generator of its own and they take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from microstages_infer.onnx_engine import OnnxEngine
from microstages_infer.rows import Rows, proved, swap_out

CAPACITY = 256  # tokens a row's buffer has at first; doubled when a row needs more
CHUNK = 512  # tokens of a prompt that are read at once: the graph gives the logits of every token
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


def rows_for(engine: OnnxEngine, most: int) -> Rows:
    """All in one pass where the model can, else taking turns."""
    rows = SessionRows.open(engine, most)
    return rows if rows is not None else GeneratorRows(engine)


class SessionRows:
    """See `rows.Rows`. All rows take a step in one run of the graph."""

    together, how = True, "ONNX Runtime, side by side"

    def __init__(self, session: Any, decoder: dict[str, Any], most: int, context: int | None) -> None:
        import numpy as np

        self._session, self._most, self._context = session, max(2, most), context
        places = {i.name: i for i in session.get_inputs()}
        ins, outs = decoder["inputs"], decoder["outputs"]
        pairs = [(ins[f"past_{k}_names"], outs[f"present_{k}_names"]) for k in ("key", "value")]
        self._names = [
            (past.replace("%d", str(i)), now.replace("%d", str(i)))
            for i in range(decoder["num_hidden_layers"])
            for past, now in pairs
        ]
        self._ids, self._mask, self._logits = ins["input_ids"], ins["attention_mask"], outs["logits"]
        self._positions = ins.get("position_ids", "position_ids")
        self._with_positions = self._positions in places
        known = {self._ids, self._mask, *(past for past, _ in self._names)} | {self._positions} & places.keys()
        if set(places) != known:
            raise ValueError("the graph has inputs of another kind")
        self._type = np.dtype(TYPES[places[self._names[0][0]].type])
        self._shape = (decoder["num_key_value_heads"], decoder["head_size"])
        self._lengths: list[int] = []
        self._capacity = 0
        self._buffers: list[Any] = []
        self._bindings: dict[tuple[int, int], Any] = {}  # by the first row and how many

    @classmethod
    def open(cls, engine: OnnxEngine, most: int) -> SessionRows | None:
        """Rows for this model; None where it is not one that keeps to what is said above."""
        import onnxruntime as ort

        decoder = engine.decoder
        if engine.device != "cpu" or engine.turn is not None or decoder.get("sliding_window"):
            return None
        options = ort.SessionOptions()
        options.intra_op_num_threads = engine.threads
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(str(engine.file), options, providers=["CPUExecutionProvider"])
            rows = cls(session, decoder, most, engine.context)
            return rows if proved(rows, engine.vocabulary or 2) else None
        except Exception:  # whatever it is that this graph cannot do, the generators may
            return None

    def clear(self) -> None:
        """See `rows.Rows`."""
        self._lengths = []

    def join(self, ids: Sequence[int], room: int) -> Any:  # noqa: ARG002  (the buffers grow with what is said)
        """See `rows.Rows`."""
        self._reserve(len(ids))
        row, logits = len(self._lengths), None
        for at in range(0, len(ids), CHUNK):
            part = ids[at : at + CHUNK]
            logits = self._run(row, [part], [at + len(part)])
        self._lengths.append(len(ids))
        assert logits is not None
        return logits[0]

    def step(self, tokens: Sequence[int]) -> Any:
        """See `rows.Rows`."""
        lengths = [n + 1 for n in self._lengths]
        self._reserve(max(lengths))
        logits = self._run(0, [[t] for t in tokens], lengths)
        self._lengths = lengths
        return logits

    def leave(self, row: int) -> None:
        """See `rows.Rows`."""
        last = len(self._lengths) - 1
        if row != last:
            for b in self._buffers:
                b[row, :, : self._lengths[last]] = b[last, :, : self._lengths[last]]
        swap_out(self._lengths, row)

    def _reserve(self, length: int) -> None:
        """Room for a row of this many tokens. The buffers' pages are the machine's only once they are written."""
        import numpy as np

        if length <= self._capacity:
            return
        capacity = max(CAPACITY, self._capacity)
        while capacity < length:
            capacity *= 2
        capacity = max(length, min(capacity, self._context or capacity))
        heads, width = self._shape
        rows, used = len(self._lengths), max(self._lengths, default=0)
        old, self._buffers, self._capacity = self._buffers, [], 0  # as it is when the memory does not suffice
        self._bindings.clear()
        buffers = []
        for at in range(len(self._names)):
            buffer = np.zeros((self._most, heads, capacity, width), self._type)
            if rows:
                buffer[:rows, :, :used] = old[at][:rows, :, :used]
                old[at] = None  # one after another, so that not all are there twice
            buffers.append(buffer)
        self._buffers, self._capacity = buffers, capacity

    def _run(self, first: int, tokens: Sequence[Sequence[int]], lengths: Sequence[int]) -> Any:
        """The last logits of the rows from `first` on, which have `lengths` tokens with these."""
        import numpy as np

        ends = np.array(lengths, dtype=np.int64)[:, None]
        ids = np.array(tokens, dtype=np.int64)
        io = self._bound(first, len(ids))
        io.bind_cpu_input(self._ids, ids)
        io.bind_cpu_input(self._mask, (np.arange(ends.max())[None] < ends).astype(np.int64))
        if self._with_positions:
            io.bind_cpu_input(self._positions, ends - ids.shape[1] + np.arange(ids.shape[1])[None])
        io.bind_output(self._logits, "cpu")
        self._session.run_with_iobinding(io)
        return io.get_outputs()[-1].numpy()[:, -1]

    def _bound(self, first: int, rows: int) -> Any:
        """The buffers of these rows, as inputs and outputs of a run."""
        if (found := self._bindings.get((first, rows))) is not None:
            return found
        io = self._bindings[first, rows] = self._session.io_binding()
        heads, width = self._shape
        shape = (rows, heads, self._capacity, width)
        for (past, now), buffer in zip(self._names, self._buffers, strict=True):
            pointer = buffer.ctypes.data + first * buffer.strides[0]
            io.bind_input(past, "cpu", 0, self._type, shape, pointer)
            io.bind_output(now, "cpu", 0, self._type, shape, pointer)
        return io


class GeneratorRows:
    """See `rows.Rows`. Each row has a generator of ONNX Runtime GenAI."""

    together, how = False, "ONNX Runtime GenAI, taking turns"

    def __init__(self, engine: OnnxEngine) -> None:
        engine.load()
        self._engine = engine
        self._rows: list[tuple[list[int], int, Any]] = []

    def clear(self) -> None:
        """See `rows.Rows`."""
        self._rows = []

    def join(self, ids: Sequence[int], room: int) -> Any:
        """See `rows.Rows`."""
        generator = self._reader(ids, len(ids) + room)
        self._rows.append((list(ids), len(ids) + room, generator))
        return _last(generator)

    def step(self, tokens: Sequence[int]) -> Any:
        """See `rows.Rows`."""
        import numpy as np

        logits = []
        for row, token in enumerate(tokens):
            ids, most, generator = self._rows[row]
            ids.append(token)
            if self._engine.turn is not None and len(ids) == self._engine.turn + 1:
                # LongRoPE: all is read again, with the long factors
                generator = self._reader(ids, most)
                self._rows[row] = (ids, most, generator)
            else:
                generator.append_tokens(np.array([token], dtype=np.int32))
            logits.append(_last(generator))
        return np.stack(logits)

    def leave(self, row: int) -> None:
        """See `rows.Rows`."""
        swap_out(self._rows, row)

    def _reader(self, ids: Sequence[int], most: int) -> Any:
        import numpy as np

        generator = self._engine.generator(1, most)
        generator.append_tokens(np.array(ids, dtype=np.int32))
        return generator


def _last(generator: Any) -> Any:
    import numpy as np

    logits = np.array(generator.get_logits(), dtype=np.float32)
    return logits.reshape(-1, logits.shape[-1])[-1]
