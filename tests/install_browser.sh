#!/bin/bash
# Debian's Chromium without a screen (20 packages, 15 s), for the tests that look at pages.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends chromium-headless-shell
