#!/usr/bin/env bash
# Make the folder of wheels that gpu.sh takes along to a machine without a network: what it needs beside torch for CUDA,
# lightning, triton, pytest and the usual packages around them.
#
#   benchmarks/gpu_wheels.sh [FOLDER] [VERSION]    FOLDER: .whl, which git ignores; VERSION: of that machine's Python, 3.12
#
# Linux on x86-64. What cannot be fetched is listed, and the part that needs it will say so there; below 64 MiB in all.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

FOLDER=${1:-.whl}
VERSION=${2:-3.12}
PYTHON=${PYTHON:-python3}
MOST_KIB=$((64 * 1024))
NEEDED="datasets dill multiprocess jsonargparse docstring-parser typeshed-client importlib-resources transformers>=5.20"
# beside them in the tables; nothing else needs them
COMPARED="cut-cross-entropy transformer-lens>=4.3 beartype typeguard better-abc fancy-einsum"

rm -rf "$FOLDER"
mkdir -p "$FOLDER"
platforms=()
for glibc in 2_17 2_24 2_27 2_28 2_31 2_34 2_35; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
missing=
for package in $NEEDED $COMPARED; do
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version "$VERSION" \
        "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$FOLDER" "$package" || missing+=" $package"
done
size=$(du -sk "$FOLDER" | cut -f1)
echo "$(find "$FOLDER" -name '*.whl' | wc -l) wheels in $FOLDER, $((size / 1024)) MiB"
if [ "$size" -gt $MOST_KIB ]; then echo "that is more than $((MOST_KIB / 1024)) MiB" >&2 && exit 1; fi
for package in $missing; do
    echo "not fetched: $package" >&2
    case " $NEEDED " in *" $package "*) needed=yes ;; esac
done
[ -z "${needed:-}" ]
