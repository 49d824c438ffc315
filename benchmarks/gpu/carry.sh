#!/usr/bin/env bash
# What a machine without a network lacks, as wheels in .gpu-carry/, in folders that one call each can carry.
#
#   bash benchmarks/gpu/carry.sh [small|rtx|ort|rtx-ep|video|all]     (default: small)
#
# For Python 3.12 on x86-64 Linux (glibc 2.28 or later) with CUDA 13. What is there already is not downloaded again.
# Needs a network, pip and xz; PYTHON names another Python than .venv's or python3.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
OUT=.gpu-carry
PLATFORMS=(--platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64
           --platform manylinux2014_x86_64 --platform manylinux1_x86_64)

wheels() { # FOLDER PACKAGE...
    local folder=$1; shift
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp "${PLATFORMS[@]}" --dest "$folder" "$@" ||
        { echo "carry: pip finds no wheel for Python 3.12 of one of: $*" >&2; return 1; }
}

packages() { # SET
    case $1 in
        small) # in lines: for scores and exports; for training and its pictures; for the tests of tests/gpu
            echo pycocotools onnxslim colorama onnxscript onnx-ir
            echo pyyaml tqdm scikit-learn matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six
            echo packaging pytest pluggy iniconfig pygments pytest-timeout hypothesis sortedcontainers ;;
        rtx) echo tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings ;;
        ort) echo onnxruntime-gpu ;;
        rtx-ep) echo onnxruntime-ep-nv-tensorrt-rtx-cu13 ;;
        video) echo PyNvVideoCodec ;;
    esac
}

carry() { # SET
    if "$PYTHON" -m benchmarks.gpu.pack "$1" --out "$OUT" --check; then
        echo "$OUT: $1 is there already"
        return
    fi
    local scratch; scratch=$(mktemp -d)
    # shellcheck disable=SC2046  # names without spaces
    wheels "$scratch" $(packages "$1") || { rm -rf "$scratch"; return 1; }
    if [ "$1" = rtx ]; then # `import tensorrt_rtx` is a package of Python files alone, which comes as source
        local version; version=$(basename "$scratch"/tensorrt_rtx_cu13_libs-*.whl | cut -d- -f2)
        "$PYTHON" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$scratch" \
            "tensorrt-rtx-cu13==$version" ||
            { echo "carry: pip cannot build tensorrt-rtx-cu13 $version" >&2; rm -rf "$scratch"; return 1; }
    fi
    local status=0
    "$PYTHON" -m benchmarks.gpu.pack "$1" "$scratch"/*.whl --out "$OUT" || status=$?
    rm -rf "$scratch"
    return $status
}

case ${1:-small} in
    small | rtx | ort | rtx-ep | video) carry "${1:-small}" ;;
    all) for name in small rtx ort rtx-ep video; do carry "$name"; done ;;
    *) echo "carry: expected small, rtx, ort, rtx-ep, video or all; got $1" >&2; exit 2 ;;
esac
echo
"$PYTHON" -m benchmarks.gpu.pack --out "$OUT" --plan
