# make demo and make test do all their set-up on a machine that has Rust.

PREFIX  ?= /usr/local
DESTDIR ?=
CARGO   ?= cargo
STRIP   ?= strip

TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN    := $(TARGET)/release/magent
UNITS  := $(PREFIX)/lib/systemd/system
MAN    := $(PREFIX)/share/man/man1
COMPLETIONS := $(PREFIX)/share/bash-completion/completions

# Debian keeps nutcracker where users do not look.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: all demo test soak check man-page unit layers install uninstall clean bench interop clients fuzz deb

all:
	$(CARGO) build --release --locked
	@$(MAKE) --no-print-directory magent
	@echo "The program is ./magent; make install puts it into $(PREFIX)/bin."

# What is run and installed; $(BIN) has what debuggers and profilers want to know.
magent: $(BIN)
	@$(STRIP) -o $(BIN).stripped $(BIN)
	@mv -f $(BIN).stripped magent

# Two primaries, a backup and magent on loopback; see tests/demo.sh.
demo: all
	@.ci/need memcached
	@tests/demo.sh $(BIN)

# Everything that can be said by yes or no. Speed: make bench. Most tests wait for timeouts rather than for a
# processor, so more of them run at a time than there are processors.
test: man-page unit
	@.ci/need memcached
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} $(CARGO) test --locked --no-fail-fast

# The simulation with fresh seeds, then chaos on real servers, for SECONDS together. A failure
# prints the seed that plays it again. First the rules of marks in all orders of events, and servers
# that are stopped for longer than any wait; and 100,000 keys that no restart and no reload loses.
soak: SECONDS ?= 600
soak:
	@.ci/need memcached
	MAGENT_MARKS_LONG=1 $(CARGO) test --locked --lib marks::
	MAGENT_ASLEEP_SECONDS=34 $(CARGO) test --locked --test unacknowledged a_stopped
	MAGENT_COPIES_KEYS=100000 $(CARGO) test --locked --test copies -- --nocapture --test-threads 1
	MAGENT_SIM_SECONDS=$$(($(SECONDS) / 2)) $(CARGO) test --locked --test simulation promises -- --nocapture
	MAGENT_CHAOS_SECONDS=$$(($(SECONDS) / 4)) $(CARGO) test --locked --test chaos -- --nocapture --test-threads 1

check: man-page unit layers
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	bash -n .ci/need .ci/run .ci/layers dist/magent.bash-completion tests/demo.sh tests/clients/run \
		tests/package.sh tests/documents.sh dist/debian/build dist/debian/magent.postinst dist/debian/magent.prerm

man-page:
	@if command -v mandoc >/dev/null; then \
		mandoc -T lint -W warning man/magent.1; \
	elif command -v man >/dev/null; then \
		said=$$(MANROFFSEQ= LC_ALL=C.UTF-8 man --warnings -l man/magent.1 2>&1 >/dev/null); \
		[ -z "$$said" ] || { echo "$$said"; exit 1; }; \
	else \
		echo "neither mandoc nor man is here: the man page was not checked"; \
	fi

unit:
	@if command -v systemd-analyze >/dev/null; then dist/check-unit; else \
		echo "systemd-analyze is not here: the units in dist/ were not checked"; fi

# No module uses one above it; .ci/layers --print draws them.
layers:
	@.ci/layers

# Root may have no cargo: `make && sudo make install` builds nothing twice.
$(BIN):
	$(CARGO) build --release --locked

install: magent
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(MAN) $(DESTDIR)$(COMPLETIONS) $(DESTDIR)$(UNITS) \
		$(DESTDIR)/etc/default
	install -m 755 magent $(DESTDIR)$(PREFIX)/bin/magent
	install -m 644 man/magent.1 $(DESTDIR)$(MAN)/magent.1
	install -m 644 dist/magent.bash-completion $(DESTDIR)$(COMPLETIONS)/magent
	for unit in magent.service magent@.service; do \
		sed 's|/usr/local/bin/|$(PREFIX)/bin/|' dist/$$unit > $(DESTDIR)$(UNITS)/$$unit && \
		chmod 644 $(DESTDIR)$(UNITS)/$$unit || exit 1; \
	done
	install -m 644 dist/magent.socket $(DESTDIR)$(UNITS)/magent.socket
	[ -e $(DESTDIR)/etc/default/magent ] || install -m 644 dist/magent.env $(DESTDIR)/etc/default/magent

# Options that somebody changed stay.
uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/magent $(DESTDIR)$(MAN)/magent.1 $(DESTDIR)$(COMPLETIONS)/magent
	cd $(DESTDIR)$(UNITS) && rm -f magent.service magent@.service magent.socket
	! cmp -s dist/magent.env $(DESTDIR)/etc/default/magent || rm -f $(DESTDIR)/etc/default/magent

clean:
	$(CARGO) clean
	rm -f magent

# make bench QUICK=1 takes under 2 minutes.
bench:
	@.ci/need memcached nutcracker strace
	QUICK=$(QUICK) $(CARGO) bench --locked --bench farm

# Real clients, installed under target/ from their registries; not part of make test.
clients: all
	@.ci/need memcached
	@tests/clients/run $(BIN)

# Mutated bytes for SECONDS in each of its targets; a bounded run is part of make test.
fuzz: SECONDS ?= 60
fuzz:
	@.ci/need memcached
	MAGENT_FUZZ_SECONDS=$(SECONDS) $(CARGO) test --locked --test fuzz -- --nocapture

# A Debian package of the program, for the machine that it is built on.
deb: all
	@.ci/need dpkg-dev=dpkg-buildpackage debhelper=dh
	@dist/debian/build $(TARGET)/deb

# Where twemproxy puts keys, there magent looks for them: 20,000 for each hash and distribution.
# What dist/ holds, under the programs that read it.
interop:
	@.ci/need memcached nutcracker logrotate prometheus chromium nodejs npm
	@mkdir -p $(TARGET)/page && cp tests/page/package.json $(TARGET)/page/
	@npm install --prefix $(TARGET)/page --no-audit --no-fund --loglevel=error >/dev/null
	PAGE_MODULES=$(abspath $(TARGET)/page/node_modules) $(CARGO) test --locked --test interop --test dist --test prometheus --test page
	@$(MAKE) --no-print-directory deb
	@.ci/need lintian debootstrap python3 iproute2=ip
	@tests/package.sh $(TARGET)/deb
	@tests/documents.sh ./magent
