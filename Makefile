# Everything a newcomer needs: `make demo` to see it, `make test` to check it.

.PHONY: setup build demo test test-runtimes test-kills simulate bench-lazy bench-fs bench-layer bench-proxy bench-faults bench-swarm bench-transfer clean-up

# Installs what is missing on this machine. Quiet if nothing is.
setup:
	@integration/setup.sh

build: setup
	cargo build --workspace --bins

# IMAGE=name shows another image than the one it makes; KEEP=1 leaves everything running until Ctrl-C.
demo: build
	target/debug/demo

test: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo build --workspace --bins
	cargo nextest run --workspace --no-fail-fast

# Newer versions of containerd and docker than this Debian has, fetched from later ones into cargo's target directory.
test-runtimes: build
	@integration/setup.sh patchelf:patchelf
	cargo nextest run -p darter-integration --run-ignored only --no-fail-fast --test runtimes

# How long a container's start takes whose layers are not here, next to overlayfs and soci-snapshotter (unpacked under
# target/). ARGS="--subject science --link-mbit 200" and the like choose. Writes target/bench/lazy.json.
bench-lazy: build
	@integration/install-soci.sh $(CURDIR)/target/integration-cache/soci
	DARTER_LOG=info target/debug/bench-lazy $(ARGS)

# How fast containers read layers that are all here, next to overlayfs on ext4. Drops the machine's page cache.
# Writes target/bench/fs.json.
bench-fs: build
	DARTER_LOG=info target/debug/bench-fs $(ARGS)

# Kills the peers of reading containers KILLS times, with each of the two mounts; `make test` does so 10 times.
KILLS ?= 200
test-kills: build
	DARTER_KILLS=$(KILLS) cargo nextest run -p darter-integration --test kills --no-capture

# The real scheduler and the peers' real plan with N peers, in a simulation; ARGS="--help" shows what else can be varied.
N ?= 100000
simulate:
	cargo build -p darter-integration --bin simulate
	target/debug/simulate --peers $(N) $(ARGS)

# How fast a layer is made, next to gzip -dc and tar x. Writes target/bench/layer.json.
bench-layer: build
	target/debug/bench-layer

# The proxy against nginx as a caching proxy (installed here if it is missing) and against the registry itself.
bench-proxy: build
	@integration/setup.sh nginx:nginx-light
	DARTER_LOG=info target/debug/bench-proxy

# What P2P costs a pull when parts of it are dead or frozen. ARGS=scheduler measures only these.
bench-faults: build
	target/debug/bench-faults $(ARGS)

# How long a swarm takes, against the physical bound. ARGS="--n 16 --mib 64 --scenario at-once --arm ours" filters.
bench-swarm: build
	@integration/setup.sh nginx:nginx-light iperf3:iperf3 curl:curl
	target/debug/bench-swarm $(ARGS)

# What it costs to move 1 GiB from peer to peer, beside nginx and curl.
bench-transfer: build
	@integration/setup.sh nginx:nginx-light curl:curl
	target/debug/bench-transfer $(ARGS)

# Removes what tests and demos have left that were killed hard; the next one does so too.
clean-up: build
	target/debug/clean-up
