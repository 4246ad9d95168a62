#!/bin/sh
# Install everything into .venv. Called by `make setup`; safe to run again, picks up where it stopped.
set -eu
say() { printf '%s\n' "$*" >&2; }
die() { say "setup: $*"; exit 1; }

[ -n "${PYTHON:-}" ] && command -v "$PYTHON" >/dev/null 2>&1 ||
  die "no Python found. Install Python 3.11 or 3.12, or name one: make setup PYTHON=/path/to/python3.11"
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case "$version" in
  3.11 | 3.12) ;;
  *) die "$PYTHON is Python $version; Stemma needs 3.11 or 3.12. Name one: make setup PYTHON=/path/to/python3.11" ;;
esac

free_mib=$(df -Pm . | awk 'NR == 2 { print $4 }')
[ -d .venv ] || [ "$free_mib" -ge 6000 ] ||
  die "only $free_mib MiB are free here; the environment needs about 5 GiB and the demo 1 GiB. Free some room first."

log=.venv/setup.log
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv ||
  die "could not make a virtual environment in .venv (on Debian: apt install python3-venv)"
: >"$log"

install() { # what-for, pip arguments…
  what=$1; shift
  say "setup: installing $what"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt "$@" >>"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    if grep -qiE 'no space left' "$log"; then die "the disk is full. Free some room and run it again."; fi
    if grep -qiE 'temporary failure in name resolution|connection (refused|error)|newconnectionerror|network is unreachable|timed out' "$log"; then
      die "the package index cannot be reached. Check the network (or PIP_INDEX_URL) and run it again."
    fi
    die "pip failed; the whole story is in $log"
  }
}

# torch first and by itself: asked for by another package it would come as its newest and largest build.
install "PyTorch" torch==2.13.0
install "the rest (two to four minutes the first time)" --editable '.[dev]'
.venv/bin/python -m pip check --disable-pip-version-check >>"$log" 2>&1 || {
  tail -n 5 "$log" >&2
  die "the installed versions do not fit together; remove .venv and run it again"
}
touch .venv/.ready
say "setup: ready in .venv"
