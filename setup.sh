#!/bin/sh
# Install everything into .venv. Called by `make setup`; it can be run again, and continues where it stopped.
set -eu
log() { printf '%s\n' "$*" >&2; }
die() { log "setup: $*"; exit 1; }

[ -n "${PYTHON:-}" ] && command -v "$PYTHON" >/dev/null 2>&1 ||
  die "no Python found. Install Python 3.11 or 3.12, or give its path: make setup PYTHON=/path/to/python3.11"
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case "$version" in
  3.11 | 3.12) ;;
  *) die "$PYTHON is Python $version; Stemma needs 3.11 or 3.12. Give the path of one: make setup PYTHON=/path/to/python3.11" ;;
esac

free_mib=$(df -Pm . | awk 'NR == 2 { print $4 }')
[ -d .venv ] || [ "$free_mib" -ge 6000 ] ||
  die "only $free_mib MiB are free here; the environment needs about 5 GiB and the demo 1 GiB. Free some space first."

output=.venv/setup.log
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv ||
  die "could not create a virtual environment in .venv (on Debian: apt install python3-venv)"
: >"$output"

install() { # what-for, pip arguments…
  what=$1; shift
  log "setup: installing $what"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt "$@" >>"$output" 2>&1 || {
    tail -n 5 "$output" >&2
    if grep -qiE 'no space left' "$output"; then die "the disk is full. Free some space and run it again."; fi
    if grep -qiE 'temporary failure in name resolution|connection (refused|error)|newconnectionerror|network is unreachable|timed out' "$output"; then
      die "the package index cannot be reached. Check the network (or PIP_INDEX_URL) and run it again."
    fi
    die "pip failed; its full output is in $output"
  }
}

# torch first and by itself: as a dependency of another package pip would take its newest and largest build.
install "PyTorch" torch==2.13.0
install "the rest (two to four minutes the first time)" --editable '.[dev]'
.venv/bin/python -m pip check --disable-pip-version-check >>"$output" 2>&1 || {
  tail -n 5 "$output" >&2
  die "the installed versions conflict with each other; remove .venv and run it again"
}
touch .venv/.ready
log "setup: ready in .venv"
