#!/bin/bash
# Four GPUs (nvidia-h100-x4), in a checkout of main with build/ built; <= 250 s in all: rows hopper4.*, then the tests over NCCL with four ranks (meshes 2 x 2 and 1 x 4 among them). Results: $OUT/h100x4-*.json
# The lead may set EXAMPLE=yes for the picture of four.
HERE=$(cd "$(dirname "$0")" && pwd)
GPUS=4 EXAMPLE=${EXAMPLE:-no} SMOKE_S=55 ROWS_S=${ROWS_S:-80} TESTS_S=${TESTS_S:-115} bash "$HERE/gpus2.sh"
