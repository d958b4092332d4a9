#!/usr/bin/env bash
# The ops of one wheel under the torch that built it and under an older one. Tests are copied away
# from the source tree, so that only the installed package can be imported.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OLDER_TORCH=${OLDER_TORCH:-2.13.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/suite"
cp -r tests "$work/suite/tests"
cp pyproject.toml "$work/suite/"

check() {  # check ENVIRONMENT: install the wheel there and run the op tests
  "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps dist/*.whl
  (cd "$work/suite" && "$1/bin/python" -m pytest tests/ops tests/test_bits.py tests/test_load.py \
    -p no:cacheprovider)
}

echo "== the torch that built the wheel"
$PYTHON -m venv "$work/newer"
site=$("$work/newer/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
.venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$site/borrowed.pth"
check "$work/newer"

echo "== torch $OLDER_TORCH"
$PYTHON -m venv "$work/older"
"$work/older/bin/python" -m pip install --quiet --disable-pip-version-check "torch==$OLDER_TORCH" \
  numpy safetensors typer rich pytest hypothesis pytest-benchmark
check "$work/older"
