# What a developer does every day. `just` alone lists it. CONTRIBUTING.md says how long each takes.

_default:
    @just --list --unsorted

# What must hold before a commit: format, lints, docs. No tests.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo clippy --workspace --bench consistency --bench mirror --bench watch --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

# The fast tier: unit tests, the documents, the library and the command line. No Kafka, no ZooKeeper, no simulation.
test *ARGS:
    cargo test --workspace --locked --lib --bins --test trimming --test shutdown --test failure --test follow --test process --test http --test telemetry --test slow --test request_memory --test cache_memory --test tools --test turns --test readme --test documentation --test layers --test golden --test library --test pipeline --test command_line {{ ARGS }}

# Everything that CI runs.
ci:
    .ci/run

# The end-to-end suites, or those whose names contain a word: `just e2e trimming`.
e2e *ARGS:
    cargo test --workspace --test e2e --locked -- {{ ARGS }}

# A rolling upgrade from an earlier version and back, under load: builds that version, which takes minutes the first time. Another
# commit than the usual one: `just upgrade abc1234`.
upgrade COMMIT="":
    E2E_UPGRADE=1 {{ if COMMIT == "" { "" } else { "E2E_UPGRADE_FROM=" + COMMIT } }} cargo test --workspace --test e2e --locked -- a_rolling_upgrade --nocapture

# Replication in simulated time: `just sim 30000`.
sim SEEDS="2000":
    SIMULATION_SEEDS={{ SEEDS }} cargo test -p bitacora-node --test simulation --locked -- --nocapture

# One seed, with all that happened.
sim-seed SEED:
    SIMULATION_SEED={{ SEED }} cargo test -p bitacora-node --test simulation --locked no_seed -- --nocapture

# The benchmarks' table; parts of it: `just bench get`; with the page and the charts: `just bench --write`.
bench *ARGS:
    cargo bench -p e2e --locked --bench suite -- {{ ARGS }}

# One thing in depth: consistency, mirror, watch.
bench-deep NAME:
    cargo bench -p e2e --locked --bench {{ NAME }}

# The inner parts of a node alone: encoding, frames, get, apply.
bench-parts *ARGS:
    cargo bench -p bitacora-node --locked --bench parts -- {{ ARGS }}

# Formats the code.
fmt:
    cargo fmt --all

# Builds the library's and the nodes' documentation, and opens it.
doc:
    cargo doc --workspace --no-deps --document-private-items --locked --open

# Licences, sources and known vulnerabilities of the dependencies.
deny:
    .ci/deny
