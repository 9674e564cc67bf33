#!/usr/bin/env bash
# Makes this checkout ready to run: tools, npm packages, native core, compiled TypeScript. Does only what is not done yet and
# says each thing it does in one line. `--dev` adds the tools that the tests need. Safe to run again, from anywhere, and twice at once.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
log="$root/.layercast/setup.log"
for_tests=no
[ "${1:-}" = "--dev" ] && for_tests=yes

say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}
# Runs a step quietly; its output is shown when it fails.
quietly() {
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    fail "this failed: $*"
  fi
}
digest_of() { sha256sum | cut -d ' ' -f 1; }
stamp_is() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

check_node() {
  command -v node >/dev/null || fail "Node.js 20.19 or newer is needed: see https://nodejs.org"
  node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' ||
    fail "Node.js $(node --version) is too old, 20.19 or newer is needed: see https://nodejs.org"
}

missing_tools() {
  local tools=""
  command -v cmake >/dev/null || tools="$tools cmake"
  command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || tools="$tools g++"
  command -v make >/dev/null || command -v ninja >/dev/null || tools="$tools make"
  [ -n "${REDIS_URL:-}" ] || command -v valkey-server >/dev/null || command -v redis-server >/dev/null ||
    tools="$tools redis-server"
  [ "$for_tests" = no ] || command -v python3 >/dev/null || tools="$tools python3"
  printf '%s' "${tools# }"
}

check_system() {
  [ "$(uname -s)" = Linux ] || fail "Layercast runs on Linux, this is $(uname -s): use a container or a virtual machine"
  local tool
  for tool in flock setpriv; do
    command -v "$tool" >/dev/null || fail "missing: $tool. Install your system's package util-linux, then run this again"
  done
}

install_tools() {
  local tools
  tools=$(missing_tools)
  [ -n "$tools" ] || return 0
  command -v apt-get >/dev/null || fail "missing: $tools. Install them with your system's package manager, then run this again" \
    "(Fedora: sudo dnf install cmake gcc-c++ make valkey; Arch: sudo pacman -S cmake gcc make valkey)"
  [ "$(id -u)" = 0 ] || fail "missing: $tools. Type: sudo apt-get update && sudo apt-get install -y $tools"
  say "installing $tools with apt-get"
  # shellcheck disable=SC2086
  apt_install $tools
}

# Layercast starts a Redis of its own: the package's service must neither start now nor at the next boot.
apt_install() {
  local policy=/usr/sbin/policy-rc.d ours="" packages=" $* "
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    ours=$policy
    # shellcheck disable=SC2064
    trap "rm -f $policy" EXIT
  fi
  quietly apt-get update
  quietly env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
  if [ -n "$ours" ]; then
    rm -f "$ours"
    trap - EXIT
  fi
  case $packages in *" redis-server "*)
    systemctl disable redis-server >/dev/null 2>&1 || true
    ;;
  esac
}

# Those of development too: the compiler of TypeScript is one of them.
install_packages() {
  local stamp=node_modules/.layercast-setup digest
  digest=$(cat package-lock.json .npmrc | digest_of)
  if stamp_is "$stamp" "$digest"; then return 0; fi
  # The versions are the lock file's. `npm ci` would do the same, but refuses where a registry lacks a package for some other
  # platform that the lock file names.
  say "installing npm packages (npm install)"
  quietly npm install --no-save --ignore-scripts --no-audit --no-fund --include=dev
  printf '%s' "$digest" >"$stamp"
}

build_native() {
  local stamp=native/build/.layercast-setup digest
  digest=$({
    "${CXX:-c++}" --version 2>/dev/null | head -n 1
    command -v nvcc || true
    cat package-lock.json
    find native/CMakeLists.txt native/build.mjs native/package.json native/src test/native/stand_in* -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  } | digest_of)
  if stamp_is "$stamp" "$digest" && [ -f native/build/Release/layercast.node ]; then return 0; fi
  say "building the native core (npm run build:native)"
  quietly env CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" npm run build:native
  printf '%s' "$digest" >"$stamp"
}

# What was compiled from a source that is gone must not be found any more, so another list of sources starts from nothing.
build_typescript() {
  local stamp=dist/.layercast-setup sources
  sources=$(find orchestrator worker native test -name '*.ts' -not -name '*.test.ts' -not -path 'native/build*' | LC_ALL=C sort | digest_of)
  stamp_is "$stamp" "$sources" || rm -rf dist
  [ -d dist ] || say "compiling TypeScript (npm run build)"
  quietly npm run build
  printf '%s' "$sources" >"$stamp"
}

# Without them only their own steps of the tests are skipped, for nothing that runs needs them. Debian's Python makes no virtual
# environment without a package more.
install_linters() {
  local folder=.layercast/lint stamp=.layercast/lint/.layercast-setup digest
  digest=$(digest_of <deploy/lint-tools.txt)
  if stamp_is "$stamp" "$digest"; then return 0; fi
  say "installing linters of Python and C++ (pip install -r deploy/lint-tools.txt)"
  rm -rf "$folder"
  if ! python3 -m venv "$folder" >"$log" 2>&1; then
    rm -rf "$folder"
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
      say "the linters are left out, their tests are skipped: python3 -m venv does not work here (Debian: sudo apt-get install python3-venv)"
      return 0
    fi
    apt_install python3-venv
    quietly python3 -m venv "$folder"
  fi
  if "$folder/bin/pip" install --quiet --disable-pip-version-check -r deploy/lint-tools.txt >"$log" 2>&1; then
    printf '%s' "$digest" >"$stamp"
  else
    say "the linters are left out, their tests are skipped or, for root, fail: pip could not install them, see $log"
  fi
}

check_system
check_node
mkdir -p .layercast
exec 9>.layercast/setup.lock
flock 9
install_tools
install_packages
[ "$for_tests" = no ] || install_linters
build_native
quietly node native/prebuilt.mjs
build_typescript
say "ready"
