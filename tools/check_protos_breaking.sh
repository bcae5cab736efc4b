#!/usr/bin/env bash
# Fail when protos/ breaks those who use the contract as it was in any of its revisions.
#
# protos/revisions/ has an image of each, from the fourth on. Whoever raises CONTRACT_REVISION records
# the new one, once, and commits it; no other command writes there:
#
#     .venv/bin/buf build protos --exclude-source-info --output protos/revisions/5.binpb
set -euo pipefail
cd "$(dirname "$0")/.."

revision=$(sed -n 's/^CONTRACT_REVISION = //p' scoring_service/rpc/answers/model_info.py)
if [[ ! -f protos/revisions/$revision.binpb ]]; then
    printf 'protos/revisions/%s.binpb is missing: record what the contract is (%s).\n' "$revision" "$0" >&2
    exit 1
fi
for image in protos/revisions/*.binpb; do
    # Today's settings judge both sides, so that a change of those cannot hide a break.
    .venv/bin/buf breaking protos --against "$image"
    printf 'buf breaking: compatible with %s.\n' "$image"
done
