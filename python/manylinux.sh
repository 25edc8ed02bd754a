#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Gives a wheel the platform tag that its symbols allow, manylinux_2_34 for one built on Debian 12, and leaves libgomp under
# its own name: a renamed copy would be a second OpenMP runtime beside torch's.
#
# usage: python/manylinux.sh WHEEL FOLDER      needs auditwheel and patchelf
set -eu
[ $# = 2 ] || { sed -n 's/^# usage: /usage: /p' "$0" >&2; exit 2; }
platform=manylinux_2_34_$(uname -m)
auditwheel repair --plat "$platform" --exclude libgomp.so.1 -w "$2" "$1"
made=$(find "$2" -name "*-$platform.whl" -newer "$1")
[ -n "$made" ] || { echo "manylinux.sh: no wheel with the tag $platform" >&2; exit 1; }
if python3 -m zipfile -l "$made" | grep -q 'libgomp-'; then
  echo "manylinux.sh: libgomp was renamed" >&2
  exit 1
fi
echo "$made"
