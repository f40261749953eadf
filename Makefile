# Needs only make and npm. Every step takes the Node that scripts/with-node.sh finds or fetches.
RUN := scripts/with-node.sh

# npm writes this file last, so it stands for a complete installation.
INSTALLED := node_modules/.package-lock.json
BUILT := dist/.built
# Folders are listed too: a deleted file changes only its folder's time.
SOURCES := $(shell find src migrations examples/whois-kind/src 2>/dev/null) \
  $(wildcard tsconfig*.json examples/whois-kind/*.json) nest-cli.json scripts/build-example.mjs

.PHONY: help start dev seed build test test-all ci bench format clean clean-data
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile

start: $(BUILT) ## install, build and run the server; the database is migrated at start
	@exec $(RUN) node dist/main.js serve

build: $(BUILT) ## install and build into dist/

test: $(BUILT) ## all checks, then the fast tests: at most 4 minutes on 2 cores
	@exec $(RUN) npm run check
	@exec $(RUN) npm run test:fast

test-all: $(BUILT) ## all checks, then all tests: replicas, crashes and long properties too
	@exec $(RUN) npm run check
	@exec $(RUN) npm run jest

# The set-up is a make of its own, so that the counts come last also when it fails.
ci: ## all checks and all tests; ends with the line "N passed, N failed"
	@$(MAKE) --no-print-directory build || { echo '0 passed, 0 failed'; exit 1; }
	@exec $(RUN) node scripts/ci.mjs

bench: $(BUILT) ## the benchmark in its short form: some 10 minutes
	@exec $(RUN) npm run bench -- --quick

format: $(INSTALLED) ## format the sources and fix what lint can fix
	@exec $(RUN) npm run format

dev: $(INSTALLED) ## serve, and start again when a source changes; a debugger can attach to port 9229
	@exec $(RUN) npm run dev

# The script handles Ctrl-C and exits with 130. Without the trap the shell would end before it.
seed: $(BUILT) ## fill the running server with a minute of a lively fleet, to look at
	@trap : INT; $(RUN) node scripts/seed.mjs || { code=$$?; [ $$code -eq 130 ] || exit $$code; }

clean: ## remove what was built; keeps dependencies and databases
	rm -rf dist examples/*/dist coverage .cache

clean-data: ## remove what a server and the example agents left in this folder: database, keys, tokens
	@pid=$$(sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p' control-plane.server.json 2>/dev/null); \
	if [ -n "$$pid" ] && kill -0 "$$pid" 2>/dev/null; then \
	  echo "Process $$pid is running a server on this folder's data: stop it, then run this again." >&2; exit 1; \
	fi
	rm -rf control-plane.* agent-identity*.json agent-identity*.json.lock

$(INSTALLED): package-lock.json
	$(RUN) npm ci --no-audit --no-fund
	@touch $@

$(BUILT): $(INSTALLED) $(SOURCES)
	$(RUN) npm run build
	@touch $@
