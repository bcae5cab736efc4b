#!/usr/bin/env bash
# Makes build/compat/NAME: the real package that an adapter is for, at the version that
# tests/compat/NAME pins, on top of .venv (torch and the test tools are taken from there).
#     tools/install_framework.sh NAME
set -euo pipefail
cd "$(dirname "$0")/.."

readonly name=$1 here=tests/compat/$1 folder=build/compat/$1
rm -rf "$folder"
.venv/bin/python -m venv "$folder"

packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
# Its own packages come first: a framework may pin another transformers than .venv has.
printf 'import site; site.addsitedir("%s")\n' "$(packages .venv)" >"$(packages "$folder")/zz_venv.pth"

"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
if [ -f "$here/without_dependencies.txt" ]; then
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
        -r "$here/without_dependencies.txt"
fi
# verl's wheel carries a package of this name, which would hide our tests.
rm -rf "$(packages "$folder")/tests"
touch "$folder/.installed"
