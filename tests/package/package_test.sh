#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs a build of msa, shared and static, and uses it as strangers would: find_package, pkg-config with a plain
# compiler, the README's example, add_subdirectory. The installed tree is moved first: it must not remember its place.
#
# The same from C, with a plain C compiler.
#
# usage: package_test.sh BUILD_DIR      a configured build of this tree; objects are reused, only libraries are relinked
set -u
build=$(cd "${1:?usage: package_test.sh BUILD_DIR}" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
cxx=${CXX:-g++}
cc=${CC:-gcc}
work=$(mktemp -d)
# The build leaves with shared libraries, as it came.
trap 'cmake -S "$root" -B "$build" -DBUILD_SHARED_LIBS=ON >/dev/null 2>&1; rm -rf "$work"' EXIT
passed=0
failed=0

check() { # NAME COMMAND...
  local name=$1 log="$work/check.log"
  shift
  if "$@" >"$log" 2>&1; then
    echo "ok     $name"
    passed=$((passed + 1))
  else
    echo "FAILED $name"
    sed 's/^/       /' "$log" | tail -n 25
    failed=$((failed + 1))
  fi
}

install_to() { # PREFIX ON|OFF
  cmake -S "$root" -B "$build" -DBUILD_SHARED_LIBS="$2" &&
    cmake --build "$build" &&
    cmake --install "$build" --prefix "$work/first-place" &&
    mv "$work/first-place" "$1"
}

with_cmake() { # PREFIX NAME
  cmake -S "$root/tests/package/consumer" -B "$work/$2" -DCMAKE_PREFIX_PATH="$1" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CXX_COMPILER="$cxx" -DREADME_EXAMPLE="$work/readme_example.cpp" &&
    cmake --build "$work/$2" && "$work/$2/consumer" | grep -x 'consumer ok'
}

with_pkg_config() { # PREFIX NAME
  local pc flags
  pc=$(find "$1" -name msa.pc) && flags=(--cflags --libs)
  [ "$2" = shared ] || flags+=(--static)
  # shellcheck disable=SC2046 # the words of pkg-config are meant to be split
  "$cxx" -std=c++20 -O1 "$root/tests/package/consumer/consumer.cpp" -o "$work/pc-$2" \
    $(PKG_CONFIG_PATH=$(dirname "$pc") pkg-config "${flags[@]}" msa) &&
    LD_LIBRARY_PATH=$(dirname "$(dirname "$pc")") "$work/pc-$2" | grep -x 'consumer ok'
}

c_with_cmake() { # PREFIX NAME
  local languages=C
  [ "$2" = shared ] || languages="C;CXX"
  cmake -S "$root/tests/package/c_consumer" -B "$work/c-$2" -DCMAKE_PREFIX_PATH="$1" -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_C_COMPILER="$cc" -DCONSUMER_LANGUAGES="$languages" -DEXAMPLE="$root/examples/attention.c" &&
    cmake --build "$work/c-$2" && "$work/c-$2/attention" | grep -x 'ok'
}

c_with_pkg_config() { # PREFIX NAME
  local pc flags
  pc=$(find "$1" -name msa.pc) && flags=(--cflags --libs)
  [ "$2" = shared ] || flags+=(--static)
  # shellcheck disable=SC2046 # the words of pkg-config are meant to be split
  "$cc" -std=c99 -pedantic -Wall -Wextra -Werror -O1 "$root/examples/attention.c" -o "$work/pc-c-$2" \
    $(PKG_CONFIG_PATH=$(dirname "$pc") pkg-config "${flags[@]}" msa) &&
    LD_LIBRARY_PATH=$(dirname "$(dirname "$pc")") "$work/pc-c-$2" | grep -x 'ok'
}

# The compiler command that README.md shows, word for word, in a home where the library is installed.
readme_command() { # PREFIX
  local command
  command=$(grep -m 1 '^g++ .*example.cpp' "$root/README.md") || return 1
  mkdir -p "$work/home" && cp -a "$1" "$work/home/msa" && cp "$work/readme_example.cpp" "$work/home/example.cpp" &&
    (cd "$work/home" && HOME=$work/home bash -ec "$command" && LD_LIBRARY_PATH=$work/home/msa/lib ./a.out)
}

installed_tool() { # PREFIX: the tool needs no libmsa.so
  env -u LD_LIBRARY_PATH "$1/bin/msa" --version | grep -F "$(sed -n 's/#define MSA_VERSION_STRING "\(.*\)"/\1/p' "$root/include/msa/version.h")" &&
    ! readelf -d "$1/bin/msa" | grep -F libmsa
}

only_msa_symbols() { # PREFIX
  local lib others
  lib=$(find "$1" -name 'libmsa.so.*.*.*' -type f)
  [ -n "$lib" ] || return 1
  others=$(nm -D --defined-only "$lib" | awk '$3 !~ /^_ZN(K?)3msa|^_ZT[ISV]N3msa|^MSA_|^msa_/ {print $3}')
  [ -z "$others" ] || { echo "exported besides msa::" "$others"; return 1; }
  nm -DC --defined-only "$lib" | grep -F 'msa::core::' | grep -v 'msa::Plan::Plan' && return 1
  return 0
}

soname() { # PREFIX
  readelf -d "$(find "$1" -name 'libmsa.so.*.*.*' -type f)" | grep -E 'SONAME.*\[libmsa\.so\.0\.[0-9]+\]'
}

hardened() { # PREFIX
  local lib
  lib=$(find "$1" -name 'libmsa.so.*.*.*' -type f)
  readelf -lW "$lib" | grep -q GNU_RELRO && readelf -dW "$lib" | grep -qE 'BIND_NOW|NOW' &&
    readelf -lW "$lib" | grep -E 'GNU_STACK.* RW ' && nm -D "$lib" | grep -q __stack_chk_fail
}

# A name that is missing or new here breaks programs, or must be written down.
c_exports() { # PREFIX
  nm -D --defined-only "$(find "$1" -name 'libmsa.so.*.*.*' -type f)" | sed -n 's/.* \(msa_[a-z_]*\)@.*/\1/p' | sort |
    diff "$root/tests/package/c_exports.txt" -
}

few_libraries() { # PREFIX: libc, libstdc++, OpenMP and what they bring
  local others
  others=$(readelf -d "$(find "$1" -name 'libmsa.so.*.*.*' -type f)" | sed -n 's/.*NEEDED.*\[\(.*\)\]/\1/p' |
    grep -vE '^(libc|libm|libstdc\+\+|libgcc_s|libgomp|libpthread|libdl|librt|ld-linux-x86-64)\.so')
  [ -z "$others" ] || { echo "needs $others"; return 1; }
}

# Writable objects of the library: none but tables that are made once, their guards, and what compilers add; a build with
# tests has registers of emulated tiles, each thread its own, as a processor has.
no_global_state() { # PREFIX
  local others
  others=$(objdump -tC "$(find "$1" -name libmsa.a)" |
    awk '($0 ~ /^[0-9a-f]+ ......O/ || $0 ~ /\.t(data|bss)/) && $0 !~ /^[0-9a-f]+ .....d/ &&
         $0 ~ /^[0-9a-f]+ ....... \.(data|bss|tdata|tbss)/ && $0 !~ /\.rel\.ro/' |
    grep -vE 'DW\.ref\.|guard variable for |::k[A-Z][A-Za-z0-9]*$|_backend\(\)::backend$|::backends\(\)::table$|machine\(\)::found$|encoder\(\)::encode$|amx_emulated::Tiles::registers\(\)::all$|__nv|__cuda|__device_stub__|fatbin')
  [ -z "$others" ] || { echo "writable globals:"; echo "$others"; return 1; }
}

wrong_version() { # PREFIX: another minor version is refused while the major one is 0
  cmake -S "$root/tests/package/wrong_version" -B "$work/wrong" -DCMAKE_PREFIX_PATH="$1"
}

subproject() { # a parent gets the library alone: no tool, no tests, no install rules, no changed library type
  cmake -S "$root/tests/package/parent" -B "$work/parent" -DMSA_SOURCE="$root" &&
    cmake --install "$work/parent" --prefix "$work/parent-out" && [ ! -e "$work/parent-out" ]
}

python3 "$root/tests/package/extract_example.py" "$root/README.md" "$work/readme_example.cpp" || exit 1
for variant in shared static; do
  prefix=$work/$variant-tree
  on=$([ $variant = shared ] && echo ON || echo OFF)
  check "install $variant" install_to "$prefix" "$on"
  check "find_package $variant" with_cmake "$prefix" "cmake-$variant"
  check "README example $variant" "$work/cmake-$variant/readme_example"
  check "pkg-config $variant" with_pkg_config "$prefix" $variant
  check "C, find_package $variant" c_with_cmake "$prefix" $variant
  check "C, pkg-config $variant" c_with_pkg_config "$prefix" $variant
done
check "installed tool" installed_tool "$work/shared-tree"
check "README command" readme_command "$work/shared-tree"
check "exports msa:: alone" only_msa_symbols "$work/shared-tree"
check "exports the C interface as it is written down" c_exports "$work/shared-tree"
check "SONAME" soname "$work/shared-tree"
check "hardening" hardened "$work/shared-tree"
check "run-time libraries" few_libraries "$work/shared-tree"
check "no mutable global state" no_global_state "$work/static-tree"
check "another minor version is refused" wrong_version "$work/shared-tree"
check "as a subproject" subproject
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
