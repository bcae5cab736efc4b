#!/usr/bin/env bash
# Fail when protos/ breaks those who use the contract as it was: tools/check_protos_breaking.sh [COMMIT]
#
# The contract is compared with COMMIT (or $PROTOS_BASELINE) when one is named; otherwise with HEAD
# while protos/ has uncommitted changes, and else with the commit before the last one that touched it.
set -euo pipefail
cd "$(dirname "$0")/.."

buf=.venv/bin/buf
baseline=${1:-${PROTOS_BASELINE:-}}

nothing_to_compare() {
    printf 'buf breaking: %s; nothing to compare with.\n' "$1"
    exit 0
}

if [[ -z $baseline ]]; then
    git rev-parse --is-inside-work-tree >/dev/null 2>&1 || nothing_to_compare "not a git checkout"
    git rev-parse --verify --quiet HEAD >/dev/null || nothing_to_compare "no commit yet"
    if [[ -n $(git status --porcelain -- protos) ]]; then
        baseline=HEAD
    else
        last=$(git log -1 --format=%H -- protos)
        [[ -n $last ]] || nothing_to_compare "no commit has protos/"
        baseline=$last^
        git rev-parse --verify --quiet "$baseline^{commit}" >/dev/null ||
            nothing_to_compare "the commit before the last change of protos/ is not in this clone"
    fi
fi

git cat-file -e "$baseline:protos" 2>/dev/null ||
    nothing_to_compare "$(git rev-parse --short "$baseline") has no protos/"

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
git archive "$baseline" -- protos | tar -x -C "$before"
# Today's settings and vendored imports judge both sides, so that a change of those cannot hide a break.
cp -R buf.yaml third_party "$before"
"$buf" breaking --against "$before"
printf 'buf breaking: compatible with %s.\n' "$(git rev-parse --short "$baseline")"
