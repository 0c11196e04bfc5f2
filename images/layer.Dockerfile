# A layer that several stages share: `core`, `torch` or `onnx` (see images/layers.py).
ARG PARENT=microstages/base:0.1.0
ARG BUILDER=microstages/builder:0.1.0
ARG WHEELS=scratch

FROM ${WHEELS} AS wheels
FROM ${PARENT} AS parent

FROM ${BUILDER} AS dependencies
ARG LAYER
ARG FLAVOR=cpu
COPY images/locks/${LAYER}.${FLAVOR}.txt /build/lock.txt
# for a torch that is not the wheel without CUDA: its libraries
COPY images/locks/${LAYER}.cuda.txt /build/cuda.txt
RUN --mount=type=bind,from=parent,target=/parent --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=ca --mount=type=secret,id=pip \
    python3 /build/install.py third-party /build/lock.txt

FROM parent
COPY --from=dependencies /delta/ /
