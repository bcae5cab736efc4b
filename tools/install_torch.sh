#!/usr/bin/env bash
# Install the pinned torch into one virtual environment: tools/install_torch.sh .venv/bin/python
#
# The torch that pip takes by default on Linux brings gigabytes of CUDA libraries. Without an NVIDIA
# GPU they are never used, so the CPU build is taken wherever it can be had.
#
#   TORCH unset  what is installed already, when it is the pinned version; else the CUDA build where
#                nvidia-smi finds a GPU, and the CPU build elsewhere
#   TORCH=cpu    the CPU build, GPU or not
#   TORCH=cuda   the default build, GPU or not
#   TORCH=skip   leave torch as it is; it must be installed already
set -euo pipefail

# Where the PyTorch project publishes its CPU builds; the package index has none for Linux.
readonly CPU_INDEX=https://download.pytorch.org/whl/cpu
readonly CPU_SIZE="approximately 200 MB to download, 750 MB on disk"
readonly MAC_SIZE="approximately 100 MB to download, 400 MB on disk"
readonly CUDA_SIZE="approximately 2 to 3 GB to download, 5 GB on disk, CUDA libraries included"

readonly python=${1:?usage: tools/install_torch.sh PATH_OF_A_VIRTUAL_ENVIRONMENTS_PYTHON}
readonly constraints=$(dirname "$0")/../constraints.txt
VERSION=$(sed -n 's/^torch==//p' "$constraints")
readonly VERSION
choice=${TORCH:-}

say() { printf '%s\n' "$*" >&2; }

in_virtual_environment() { "$python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)'; }

# Without importing it: that takes seconds.
installed_version() {
    "$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true
}

# A progress bar for people, silence for logs.
pip_install() {
    local quiet=() # expanded as below because the bash of macOS takes an empty array for unset
    [[ -t 1 ]] || quiet=(--quiet)
    "$python" -m pip install ${quiet[@]+"${quiet[@]}"} --disable-pip-version-check \
        --constraint "$constraints" "$@"
}

# Quiet about the first failure: an index without this build is expected, and the next one is asked.
install_cpu() {
    say "Installing torch $VERSION, CPU build ($CPU_SIZE)"
    pip_install "torch==$VERSION+cpu" 2>/dev/null && return
    say "The configured package index has no CPU build for this Python; asking $CPU_INDEX"
    pip_install --retries 2 --extra-index-url "$CPU_INDEX" "torch==$VERSION+cpu"
}

cpu_or_explain() {
    install_cpu && return
    say ""
    say "No CPU build of torch $VERSION could be had for $("$python" --version)."
    say "The default build works without a GPU too, but it weighs $CUDA_SIZE."
    say "To take it all the same:          TORCH=cuda make install"
    say "To use a torch of your own:       install it into .venv, then TORCH=skip make install"
    say "Or try another Python (3.11-3.13): make clean install PYTHON=python3.12"
    exit 1
}

in_virtual_environment || {
    say "$python is not in a virtual environment; refusing to install into it."
    exit 1
}

have=$(installed_version)

if [[ -z $choice ]]; then
    if [[ $have == "$VERSION" || $have == "$VERSION+"* ]]; then
        choice=skip
    elif nvidia-smi >/dev/null 2>&1; then
        choice=cuda
    else
        choice=cpu
    fi
fi

case $choice in
    skip)
        [[ -n $have ]] || {
            say "TORCH=skip, but torch is not installed in this environment: the next step would take" \
                "the default build ($CUDA_SIZE)."
            exit 1
        }
        say "Keeping torch $have"
        ;;
    cpu)
        if [[ $have == "$VERSION+cpu" ]]; then
            say "torch $have is there"
        elif [[ $(uname -s) == Darwin ]]; then
            say "Installing torch $VERSION ($MAC_SIZE)"
            pip_install "torch==$VERSION" # macOS has one build, without CUDA
        else
            cpu_or_explain
        fi
        ;;
    cuda)
        # 2.13.0 without a suffix, or with one such as +cu130, but not the CPU build.
        if [[ $have == "$VERSION" || $have == "$VERSION+cu"* ]]; then
            say "torch $have is there"
        else
            [[ -z $have ]] || "$python" -m pip uninstall --quiet --yes torch
            say "Installing torch $VERSION ($CUDA_SIZE)"
            pip_install "torch==$VERSION,!=$VERSION+cpu"
        fi
        ;;
    *)
        say "TORCH=$choice: expected cpu, cuda, skip or nothing"
        exit 2
        ;;
esac
