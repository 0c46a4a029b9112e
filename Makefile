# Everything that people do with this repository; `make help` lists it.
# The lab (python3 -m lab) installs and starts what is missing; YES=1 keeps it from asking.

PY := .venv/bin/python
PYTEST := $(PY) -m pytest
# More options for the demo, e.g. DEMO="--data /tmp/demo --keep-lab".
DEMO ?=
# DEMO_NET=--vms: with a VM on each host and pods in them; DEMO_NET="--vms debian": with a Debian VM on
# one host. Both need dist/swarmctl (make binary).
DEMO_NET ?=
# Options for the launch benchmarks, e.g. BENCH="--short" or BENCH="--only keynote".
BENCH ?=
# What make bench-compare compares with: a report, or a folder with some.
BASE ?=
# Where make bench-net writes what it found.
JSON ?= bench/results/net.json
# Seconds that make test simulates for: as many seeds as fit, and at least 200.
SIMULATE_S ?= 110
# Processes that test at the same time: they wait for daemons half of the time.
WORKERS ?= 3
# What make soak simulates: how many seeds, from which on.
SEEDS ?= 1000
SEED_BASE ?= 0
# Options for make soak-real, e.g. SOAK="--seconds 60 --output /dev/null --picture /tmp/soak.svg".
SOAK ?=
# A bug to plant for make soak, to see it found; tests/sim/world/plants.py has them.
PLANT ?=
# Anything, for make soak with holds that are longer than a lease, and nodes taken out that run.
HARSH ?=
SOURCES := $(shell find swarmctl -name '*.py')

.DEFAULT_GOAL := help
.PHONY: help demo demo-net demo-net-down down purge test test-together test-seeds soak soak-real test-slow check
.PHONY: quick bench bench-net bench-compare docs binary image lock venv ready

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ready ## a one-machine cluster with real containers and VMs, left up
	@$(PY) -m lab.demo up $(DEMO)

down: ## take the demo away, whole, and stop the daemons that the lab started
	@python3 -m lab.demo down $(DEMO)

demo-net: ready ## two hosts on this machine, tenant networks over both, and packets to look at
	@$(PY) -m lab.demo net $(DEMO_NET)

demo-net-down: ## take that one away
	@python3 -m lab.demo net-down

purge: down demo-net-down ## down, and remove the caches and the built files too
	@python3 -m lab purge
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis swarmctl.egg-info

test: ready ## every test, real daemons included, as CI runs it
	@$(MAKE) --no-print-directory check image
	@$(MAKE) --no-print-directory -j2 test-together test-seeds
	$(PYTEST) -q -m 'not slow and alone' tests

# Beside each other: the tests wait for daemons half of the time, and the seeds take what they leave.
# Compiled first: where Python keeps no bytecode (an image for containers often says so), each of some
# hundred daemons and commands would compile swarmctl anew.
test-together: venv
	@$(PY) -m compileall -q swarmctl lab bench
	$(PYTEST) -q -m 'not slow and not alone' -n $(WORKERS) --dist loadfile tests/integration tests/e2e tests/unit tests/sim

test-seeds: venv
	nice -n 19 $(PY) -m tests.sim.world --for $(SIMULATE_S) --at-least 200

soak: venv ## simulate clusters in trouble: make soak SEEDS=1000 SEED_BASE=0; the last line says how many held
	@$(PY) -m tests.sim.world --seeds $(SEEDS) --seed-base $(SEED_BASE) $(if $(PLANT),--plant $(PLANT)) $(if $(HARSH),--harsh)

soak-real: ready ## real daemons, containers and a VM under churn for 20 minutes; fails when something grows
	@$(PY) -m bench.soak $(SOAK)

test-slow: ready binary ## the tests that take longer than CI allows
	$(PYTEST) -m slow tests

check: venv ## format, lint, types, and the house rules
	$(PY) -m ruff format --check --quiet .
	$(PY) -m ruff check --quiet .
	$(PY) -m mypy
	$(PYTEST) -q tests/test_tidy.py tests/test_docs.py

quick: ## in seconds: lint of what changed, its unit tests without the property tests, house rules
	@files=$$(git diff --name-only --diff-filter=d HEAD -- '*.py'; git ls-files -o --exclude-standard -- '*.py'); \
	[ -z "$$files" ] || { $(PY) -m ruff format --check --quiet $$files && $(PY) -m ruff check --quiet $$files; } && \
	tests=$$(for file in $$files; do case $$file in \
	  tests/unit/*/*) echo $${file%/*};; \
	  tests/unit/test_*) echo $$file;; \
	  swarmctl/controller/store/*) echo tests/unit/store;; \
	  swarmctl/*/*) name=$${file#swarmctl/}; echo tests/unit/$${name%%/*};; \
	esac; done | sort -u | while read -r name; do [ ! -e $$name ] || echo $$name; done) && \
	$(PYTEST) -q -m 'not slow and not hypothesis' -n 2 $${tests:-tests/unit/proto tests/unit/spec tests/unit/controller} tests/test_tidy.py

bench: ready ## launches at scale in ten minutes, into bench/results; then the other benchmarks
	$(PY) -m bench.launch.suite $(BENCH)
	$(PY) -m bench.launch_real
	$(PY) -m bench.small_machine
	$(PY) -m bench.placement --small
	$(PY) -m bench.commits
	$(PY) -m bench.startup

bench-net: ready binary ## networks: headers, throughput, latency, what is blocked: make bench-net JSON=FILE
	@$(PY) -m bench.net --json $(JSON)

bench-compare: venv ## ratios of bench/results to an earlier result: make bench-compare BASE=FILE
	@$(PY) -m bench.launch.compare $(BASE)

docs: venv ## write the generated parts of docs/, and check every link
	$(PY) -m docs.generate
	$(PYTEST) -q tests/test_docs.py

binary: dist/swarmctl dist/unpacked/swarmctl ## dist/swarmctl: one file, with Python and every dependency in it

dist/swarmctl: $(SOURCES) packaging/swarmctl.spec packaging/frozen_environment.py requirements.lock | venv
	$(PY) -m PyInstaller --log-level WARN --noconfirm --distpath dist --workpath build packaging/swarmctl.spec
	@touch $@

# Made together; one of them may have been taken away.
dist/unpacked/swarmctl: dist/swarmctl
	@[ -e $@ ] || { rm -f dist/swarmctl; $(MAKE) --no-print-directory dist/swarmctl; }
	@touch $@

image: binary ## swarmctl/swarmctl:latest, for Docker
	@python3 -m lab.image

lock: venv ## choose the newest versions that pyproject.toml allows, into requirements.lock
	$(PY) -m piptools compile --upgrade --all-extras --generate-hashes --allow-unsafe --strip-extras \
	  --no-header --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --quiet \
	  --output-file requirements.lock pyproject.toml

venv: ## .venv, from the lock file
	@python3 -m lab.venv

# The daemons first: they bring what the virtual environment is built with, and ask once for all.
ready:
	@python3 -m lab up
	@python3 -m lab.venv
