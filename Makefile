# The commands that the README names. `make demo` and `make test` install what they need.

.PHONY: demo test bench build loom interop

build:
	cargo build --release --workspace --bins

demo:
	./tests/setup.sh demo
	$(MAKE) --no-print-directory build
	./tests/demo.sh

test:
	./tests/setup.sh
	$(MAKE) --no-print-directory build
	cargo nextest run --workspace
	$(MAKE) --no-print-directory loom

# Every interleaving of the rings' publish, consume and sleep steps. A target folder
# of its own: the flag would rebuild everything else.
loom:
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo nextest run --release -p ringlab-ring --no-default-features --test 'loom_*'

bench:
	./tests/setup.sh
	$(MAKE) --no-print-directory build
	cargo build --release -p ringlab-ring --example ring_bench
	./target/release/ringlab-bench

# A real Linux kernel in QEMU drives nicd: on demand. Unpacks QEMU and the kernel into target/interop; about half a minute.
interop:
	./tests/setup.sh demo
	$(MAKE) --no-print-directory build
	./tests/interop.sh
