#!/bin/bash
# Sends valid requests (RATE per second, 20,000 by default) while five times as many malformed and
# unsteered packets arrive: SECONDS for each engine, on a lab of its own. Needs root. Prints the
# generator's result, and fails unless every request gets all its replies.
#
#   bench/hostile.sh [RATE [SECONDS [ENGINE,… [REPLIES]]]]
set -euo pipefail
cd "$(dirname "$0")/.."
export SIXHOP_FLOOD_RATE=${1:-20000} SIXHOP_FLOOD_SECONDS=${2:-10} SIXHOP_FLOOD_ENGINES=${3:-afxdp,reflect} SIXHOP_FLOOD_REPLIES=${4:-1}
exec cargo test --locked --release --test all -- --nocapture a_flood_takes_no_answer_from_others
