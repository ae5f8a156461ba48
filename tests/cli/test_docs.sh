#!/usr/bin/env bash
# The man page and the completion are what the program says of itself.
. "$(dirname "$0")/lib.sh"
python3 "$ESPALIER_SOURCE/tools/make_docs.py" "$ESPALIER_BIN" --check "$ESPALIER_SOURCE/docs" || fail "docs are stale"
