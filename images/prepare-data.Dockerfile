# prepare-data: the tokenizers and pyarrow; no torch.
ARG PARENT=microstages/core:0.1.0-cpu
ARG BUILDER=microstages/builder:0.1.0
ARG WHEELS=scratch

FROM ${WHEELS} AS wheels
FROM ${PARENT} AS parent

# What the parent does not have of the locked dependencies.
FROM ${BUILDER} AS dependencies
ARG FLAVOR=cpu
COPY images/locks/prepare-data.${FLAVOR}.txt /build/lock.txt
RUN --mount=type=bind,from=parent,target=/parent --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=ca --mount=type=secret,id=pip \
    python3 /build/install.py third-party /build/lock.txt

# What the stages share.
FROM ${BUILDER} AS library
COPY stages/lib/pyproject.toml stages/lib/README.md /source/lib/
COPY stages/lib/microstages /source/lib/microstages
RUN python3 /build/install.py own /source/lib

# The stage itself: the only part that a change in its folder makes anew.
FROM ${BUILDER} AS code
COPY stages/prepare-data/pyproject.toml stages/prepare-data/README.md /source/stage/
COPY stages/prepare-data/microstages_prepare_data /source/stage/microstages_prepare_data
RUN python3 /build/install.py own /source/stage
RUN --mount=type=bind,from=parent,target=/parent \
    --mount=type=bind,from=dependencies,source=/delta,target=/deltas/dependencies \
    --mount=type=bind,from=dependencies,source=/build/lock.txt,target=/build/lock.txt \
    --mount=type=bind,from=library,source=/delta,target=/deltas/library \
    python3 /build/sbom.py prepare-data /build/lock.txt

FROM parent
COPY --from=dependencies /delta/ /
COPY --from=library /delta/ /
COPY --from=code /delta/ /
USER 10001:10001
ENTRYPOINT ["prepare-data"]
CMD ["--help"]
ARG FLAVOR=cpu
ARG VERSION=0.1.0
ARG SOURCE
ARG REVISION
ARG CODE
ARG INTERFACE
LABEL org.opencontainers.image.title="microstages prepare-data" \
    org.opencontainers.image.description="Rows of text become token sequences that a model can be trained on" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.documentation="${SOURCE:+${SOURCE}/}stages/prepare-data/README.md" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="MIT" \
    microstages.stage="prepare-data" \
    microstages.flavor="${FLAVOR}" \
    microstages.code="${CODE}" \
    microstages.interface="${INTERFACE}"
