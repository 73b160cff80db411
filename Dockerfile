# The image of a Bitacora node, with the command line `bitacora` beside it.
#
#   docker build -t bitacora --build-arg REVISION="$(git rev-parse --short HEAD)" .
#   docker build --target symbols -o out .     # the binaries' debug symbols, as out/*.debug

ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

# --- The toolchain and what the C libraries (librdkafka, OpenSSL, zstd, zlib, LMDB, jemalloc) need to compile.
FROM ${RUST_IMAGE} AS toolchain
# make and g++: librdkafka builds its C++ half too. perl: OpenSSL's Configure needs more modules than perl-base has.
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ make perl \
 && rm -rf /var/lib/apt/lists/*
ENV CARGO_INCREMENTAL=0 CARGO_NET_RETRY=5
WORKDIR /src

# --- The dependencies alone, over empty sources: this layer lives until a manifest or the lock file changes.
FROM toolchain AS dependencies
COPY Cargo.toml Cargo.lock ./
COPY client/Cargo.toml client/
COPY client/cli/Cargo.toml client/cli/
COPY client/program/Cargo.toml client/program/
COPY client/protocol/Cargo.toml client/protocol/
COPY e2e/Cargo.toml e2e/
COPY node/Cargo.toml node/
# [[bin]], [[test]] and [[bench]] name files that are not here yet: only this layer's copies of the manifests lose
# them. The empty crates' own artefacts go at once: Cargo compares times, and would take them for the real ones.
RUN for member in client client/cli client/program client/protocol e2e node; do \
        awk '/^\[/ { target = /^\[\[/ } !target' "$member/Cargo.toml" > manifest && mv manifest "$member/Cargo.toml" \
     && mkdir -p "$member/src" && touch "$member/src/lib.rs" || exit 1; \
    done \
 && echo 'fn main() {}' | tee node/src/main.rs > client/cli/src/main.rs \
 && cargo build --locked --release -p bitacora-node -p bitacora-cli \
 && cargo clean --locked --release -p bitacora-node -p bitacora-cli -p bitacora-client -p bitacora-program -p bitacora-protocol

# --- The node and the command line. The end-to-end crate stays empty: its sources are no part of the image.
FROM dependencies AS build
COPY client client
COPY node node
# For `bitacora_build_info`.
ARG REVISION=unknown
# The line tables go to files of their own, which the stripped binaries name.
RUN BITACORA_REVISION="$REVISION" cargo build --locked --release -p bitacora-node -p bitacora-cli \
 && mkdir /out && cd /out \
 && for program in bitacora-node bitacora; do \
        objcopy --only-keep-debug "/src/target/release/$program" "$program.debug" \
     && objcopy --strip-all --add-gnu-debuglink="$program.debug" "/src/target/release/$program" "$program" || exit 1; \
    done

FROM scratch AS symbols
COPY --from=build /out/*.debug /

# --- What runs.
FROM ${RUNTIME_IMAGE}
RUN groupadd --gid 10001 bitacora \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/bitacora --shell /usr/sbin/nologin bitacora \
 && install -d -o 10001 -g 10001 -m 0750 /var/lib/bitacora
# The roots that librdkafka trusts when brokers are reached over TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/bitacora-node /out/bitacora /usr/local/bin/

ENV API_PORT=8080 AVRO_PORT=8081 DATA_DIR=/var/lib/bitacora
# By number: an orchestrator can then see that it isn't root.
USER 10001:10001
WORKDIR /var/lib/bitacora
VOLUME /var/lib/bitacora
EXPOSE 8080 8081
# The node handles it as process 1: it leaves the cluster, ends the requests under way, closes its store.
STOPSIGNAL SIGTERM
# Readiness. A long restore counts as starting; a node that is restoring is alive, so nothing should restart it for this.
HEALTHCHECK --interval=3s --timeout=3s --start-period=120s --retries=3 CMD ["bitacora-node", "health"]
ENTRYPOINT ["bitacora-node"]
CMD ["serve"]

# Last, for they change with every build.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="bitacora" \
      org.opencontainers.image.description="A node of Bitacora: a replicated in-memory key-value store whose log is a compacted Kafka topic" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
