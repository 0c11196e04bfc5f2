# train-qlora: peft and bitsandbytes on the torch layer.
ARG PARENT=microstages/torch:0.1.0-cpu
ARG BUILDER=microstages/builder:0.1.0
ARG WHEELS=scratch

FROM ${WHEELS} AS wheels
FROM ${PARENT} AS parent

# What the parent does not have of the locked dependencies.
FROM ${BUILDER} AS dependencies
ARG FLAVOR=cpu
COPY images/locks/train-qlora.${FLAVOR}.txt /build/lock.txt
RUN --mount=type=bind,from=parent,target=/parent --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=ca --mount=type=secret,id=pip \
    python3 /build/install.py third-party /build/lock.txt

# What the stages share.
FROM ${BUILDER} AS library
COPY stages/lib/pyproject.toml stages/lib/README.md /source/lib/
COPY stages/lib/microstages /source/lib/microstages
COPY stages/lib/training /source/training
RUN python3 /build/install.py own /source/lib /source/training

# The stage itself: the only part that a change in its folder makes anew.
FROM ${BUILDER} AS code
COPY stages/train-qlora/pyproject.toml stages/train-qlora/README.md /source/stage/
COPY stages/train-qlora/microstages_train_qlora /source/stage/microstages_train_qlora
RUN python3 /build/install.py own /source/stage
RUN --mount=type=bind,from=parent,target=/parent \
    --mount=type=bind,from=dependencies,source=/delta,target=/deltas/dependencies \
    --mount=type=bind,from=dependencies,source=/build/lock.txt,target=/build/lock.txt \
    --mount=type=bind,from=library,source=/delta,target=/deltas/library \
    python3 /build/sbom.py train-qlora /build/lock.txt

FROM parent
COPY --from=dependencies /delta/ /
COPY --from=library /delta/ /
COPY --from=code /delta/ /
USER 10001:10001
ENTRYPOINT ["train-qlora"]
CMD ["--help"]
ARG FLAVOR=cpu
ARG VERSION=0.1.0
ARG SOURCE
ARG REVISION
ARG CODE
ARG INTERFACE
LABEL org.opencontainers.image.title="microstages train-qlora" \
    org.opencontainers.image.description="Train a LoRA adapter on a base model quantized to 4 bits" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.documentation="${SOURCE:+${SOURCE}/}stages/train-qlora/README.md" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="MIT" \
    microstages.stage="train-qlora" \
    microstages.flavor="${FLAVOR}" \
    microstages.code="${CODE}" \
    microstages.interface="${INTERFACE}"
