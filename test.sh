#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# One command: installs what the tests need, builds, runs everything, ends with "N passed, N failed".
# Each section is a function section_NAME below; what it runs is a list of steps, each with a log in build/test-logs.
set -u
cd "$(dirname "$0")" || exit 2

usage() {
  cat <<'TEXT'
usage: ./test.sh [--quick] [--long] [--only SECTION]... [--no-install] [--gpu [--build DIR]] [--mutants] [--list] [--help]

Installs what the tests need (apt-get, as root; otherwise it says what to install), builds and tests.

  --quick           style, unit tests, verification on the best instruction set, command line
  --long            longer fuzzing, cases of real size, clang-tidy, ABI comparison with the last release, 64-bit ARM
                    cross-compiled and emulated, CUDA kernels on emulated GPUs
  --only SECTION    this section alone; may be given several times
  --no-install      use what the machine has
  --gpu             the tests that need an NVIDIA GPU, and only they; fails where there is none
  --mutants         some fifty small faults of the CPU's code, each of which a test must see; some minutes
                    of 16 cores. With --gpu: fifty of the CUDA backend
  --build DIR       with --gpu: a build made elsewhere, of all and of msa_core, instead of building here
  --list            the sections, one a line

Sections: style unit verify package cli python asan fuzz tsan; arm and emulated run with --long, or where they are asked for
Exit status: 0 all passed, 1 something failed, 2 wrong usage or missing tools.
TEXT
}

long_sections=(arm emulated)
all_sections=(style unit verify package cli python asan fuzz tsan "${long_sections[@]}")
quick_sections=(style unit verify cli)
sections=()
quick=
long=
gpu=
gpu_build=
mutants=
install=yes
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=yes ;;
    --long) long=yes ;;
    --gpu) gpu=yes ;;
    --mutants) mutants=yes ;;
    --no-install) install= ;;
    --only | --build)
      [ $# -ge 2 ] || { echo "test.sh: $1 needs a value" >&2; exit 2; }
      if [ "$1" = --build ]; then
        gpu_build=$2
      elif [[ " ${all_sections[*]} " == *" $2 "* ]]; then
        sections+=("$2")
      else
        echo "test.sh: no section '$2'; there are: ${all_sections[*]}" >&2
        exit 2
      fi
      shift
      ;;
    --list) printf '%s\n' "${all_sections[@]}"; exit 0 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "test.sh: unknown option '$1'" >&2; usage >&2; exit 2 ;;
  esac
  shift
done
if [ -n "$gpu_build" ] && { [ -z "$gpu" ] || [ -n "$mutants" ]; }; then
  echo "test.sh: --build goes with --gpu, and not with --mutants, which build their own" >&2
  exit 2
fi
if [ ${#sections[@]} -eq 0 ]; then
  sections=("${all_sections[@]}")
  [ -n "$long" ] || sections=("${all_sections[@]:0:${#all_sections[@]}-${#long_sections[@]}}")
  [ -z "$quick" ] || sections=("${quick_sections[@]}")
fi

jobs=$(nproc)
logs=$PWD/build/test-logs
release=$PWD/build/release
fuzz=$PWD/build/fuzz
tsan=$PWD/build/tsan
symbolizer=/usr/bin/llvm-symbolizer-14
passed=0
failed=0
failures=()
mkdir -p "$logs"

# Threads that wait sleep: several tests share the machine, and threads that spin took more of it than the tests.
export OMP_WAIT_POLICY=passive
# The wheel compiles the files of the release build again, with the same flags: a cache of this tree's own serves it.
# Depend mode, as asking the preprocessor first costs more than that saves. Paths count from the build folder, as groups of
# files (MSA_UNITY) lie in it: both folders are equally deep.
export CCACHE_DIR=$PWD/build/ccache CCACHE_DEPEND=1 CCACHE_BASEDIR=$PWD

# ---- what the tests need ---------------------------------------------------------------------------------------------

packages=(g++ ccache pkg-config python3 binutils git libgtest-dev libcli11-dev nlohmann-json3-dev libfmt-dev)
command -v cmake >/dev/null || packages+=(cmake)
command -v ninja >/dev/null || packages+=(ninja-build)
wants() { [[ " ${sections[*]} " == *" $1 "* ]]; }
wants style && packages+=(clang-14 clang-format-14 g++-aarch64-linux-gnu shellcheck)
if wants asan || wants fuzz || wants tsan; then
  packages+=(clang-14 libclang-rt-14-dev libomp-14-dev llvm-14)
fi
wants arm && packages+=(g++-aarch64-linux-gnu qemu-user-static libgtest-dev:arm64 libfmt-dev:arm64)
[ -z "$long" ] || packages+=(clang-tidy-14 abigail-tools)

missing_packages() {
  local p
  for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || echo "$p"
  done
}

install_packages() {
  local missing
  command -v dpkg-query >/dev/null || { echo "not a Debian system; needed: ${packages[*]}"; return 0; }
  mapfile -t missing < <(missing_packages)
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then
    echo "Please install first:  sudo apt-get install -y --no-install-recommends ${missing[*]}"
    return 1
  fi
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  ! wants arm || dpkg --add-architecture arm64
  { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$logs/install.log" 2>&1 ||
    { tail -n 20 "$logs/install.log"; return 1; }
}

# ---- steps -----------------------------------------------------------------------------------------------------------

seconds_since() { # T0 (of $EPOCHREALTIME)
  LC_ALL=C awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.1f s", b - a}'
}

# What a step's log says it ran: "N passed, N failed" of our own programs (one step may run several), the totals of msa
# verify, the last lines of ctest, GoogleTest, pytest or Python's unittest; a step that says nothing counts 1. Where ctest
# --verbose shows what GoogleTest says of many tests in one process, each counts.
counts_of() { # LOG -> "passed failed [rejected]"
  awk '/^[0-9]+ passed, [0-9]+ failed/ {p += $1; f += $3; seen = 1}
       /% tests passed.* out of [0-9]+/ {f = /tests? failed/ ? $4 : 0; p = $NF - f; seen = 1}
       /^Ran [0-9]+ tests? in / {p = $2; f = 0; seen = 1}
       /^FAILED \((failures|errors)=/ {n = $0; gsub(/[^0-9]+/, " ", n); split(n, x, " "); f = x[1] + x[2]; p -= f}
       /^\[  PASSED  \] [0-9]+ test/ {p = $4; seen = 1}
       /^\[  FAILED  \] [0-9]+ test/ {f = $4}
       /^[0-9]+ (passed|failed|errors?|skipped)[, ].* in [0-9.]+s/ {
         for (i = 1; i < NF; i++) {if ($(i + 1) ~ /^passed/) p += $i; if ($(i + 1) ~ /^(failed|error)/) f += $i}
         seen = 1}
       /^[0-9]+: \[  PASSED  \] [0-9]+ test/ {in_shards += $5; ++shards}
       /^[0-9]+: \[  FAILED  \] [0-9]+ tests?, listed below/ {failed_in_shards += $5; ++failed_shards}
       $1 == "passed" && NF == 2 {p = $2; seen = 1}
       $1 == "failed" && NF == 2 {f = $2}
       $1 == "rejected" && NF == 2 {rejected = $2 " rejected"}
       END {
         p += in_shards - (shards - failed_shards)
         f += failed_in_shards - failed_shards
         if (seen) print p + 0, f + 0, rejected}' "$1"
}

step() { # NAME COMMAND...
  begin_step "$@"
  end_steps
}

# Steps that use one core each run side by side: begin_step waits for a free core and starts one, end_steps waits for all
# and reports them in the order in which they began; it fails when one of them did.
begun=()
begin_step() { # NAME COMMAND...
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  begun+=("$1")
  run_step "$@" &
}

log_of() { # NAME
  echo "$logs/$(tr -cs 'A-Za-z0-9._\n' '-' <<<"$1").log"
}

run_step() { # NAME COMMAND...: leaves its exit status and time in LOG.took
  local start=$EPOCHREALTIME log
  log=$(log_of "$1")
  shift
  if declare -F "$1" >/dev/null; then
    ("$@") >"$log" 2>&1 </dev/null
  else
    timeout --kill-after=10 1200 "$@" >"$log" 2>&1 </dev/null # a hang is a failure, not a lost CI run
  fi
  echo "$? $(seconds_since "$start")" >"$log.took"
}

end_steps() {
  local name all=0
  wait
  for name in "${begun[@]}"; do report_step "$name" || all=1; done
  begun=()
  return $all
}

report_step() { # NAME
  local name=$1 status seconds p f more log
  log=$(log_of "$name")
  read -r status seconds <"$log.took" && rm "$log.took"
  read -r p f more <<<"$(counts_of "$log")"
  if [ -z "${p:-}" ]; then
    p=$((status == 0)) f=$((status != 0))
  elif [ "$f" = 0 ] && { [ "$status" != 0 ] || [ "$p" = 0 ]; }; then
    f=1 # it broke off, or ran nothing
  fi
  passed=$((passed + p))
  failed=$((failed + f))
  if [ "$status" = 0 ] && [ "$f" = 0 ]; then
    echo "ok     $name: $p passed${more:+, $more} ($seconds)"
    return 0
  fi
  failures+=("$name (exit status $status): $log")
  echo "FAILED $name: $p passed, $f failed, exit status $status ($seconds)"
  grep -E '^[0-9]+: (\[  FAILED  \] .*\)$|=+[0-9]+=+ERROR: |.*: runtime error: )' "$log" | head -n 20 | sed 's/^/       /'
  tail -n 40 "$log" | sed 's/^/       /'
  return 1
}

not_run() { # WHAT REASON
  echo "not run: $1: $2"
}

build() { # DIR TARGET CMAKE-ARGUMENT...
  local dir=$1 target=$2
  shift 2
  cmake -B "$dir" -DMSA_UNITY=ON "$@" && cmake --build "$dir" -j "$jobs" --target "$target"
}

# Kernels are compiled and linked here, and never run. Where the toolkit can take them apart their machine code is tested;
# where it cannot, nobody sees what optimising them would take 150 CPU seconds for.
build_release() {
  [ -z "${release_built:-}" ] || return 0
  step "build release" cached build "$release" all --preset release -DMSA_WERROR=ON -DBUILD_SHARED_LIBS=ON \
    -DMSA_CUDA_ARCHITECTURES=90 -DMSA_CUDA_QUICK=ON -DMSA_TEST_SHARDS=4 &&
    release_built=yes
}

# With the cache of compiled files, where it is installed and nobody chose another; it knows a compiler by its name.
cached() { # COMMAND...
  if command -v ccache >/dev/null; then
    CXX=${CXX:-g++} CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER:-ccache} "$@"
  else
    "$@"
  fi
}

build_fuzz() {
  [ -z "${fuzz_built:-}" ] || return 0
  export ASAN_SYMBOLIZER_PATH=$symbolizer
  export LSAN_OPTIONS=suppressions=$PWD/tests/sanitizers/leaks.txt:print_suppressions=0
  step "build with ASan and UBSan" build "$fuzz" all --preset fuzz -DMSA_TEST_SHARDS=8 && fuzz_built=yes
}

# ---- time ------------------------------------------------------------------------------------------------------------

# CPU seconds that each section may take on the default run, builds that it needs included: about 1.3 times what it takes
# where nobody else runs. Time on the clock depends on who does; these less so. A section over its budget is reported: make
# it faster, or give it more here and take it from another.
declare -A budgets=([style]=70 [unit]=550 [verify]=130 [package]=35 [cli]=10 [python]=250 [asan]=630 [fuzz]=190 [tsan]=70)
took=()

cpu_seconds() { # PID: of this shell and all that it has waited for, so far
  LC_ALL=C awk -v ticks="$(getconf CLK_TCK)" '{printf "%.1f", ($14 + $15 + $16 + $17) / ticks}' "/proc/$1/stat"
}

print_budgets() {
  local line section wall before after
  printf '%-10s %9s %9s %9s\n' section seconds 'CPU s' budget
  for line in "${took[@]}"; do
    read -r section wall _ before after <<<"$line"
    LC_ALL=C awk -v name="$section" -v wall="$wall" -v before="$before" -v after="$after" \
      -v budget="${budgets[$section]:-0}" -v long="$long" 'BEGIN {
        cpu = after - before
        over = long == "" && budget > 0 && cpu > budget ? "  over budget" : ""
        printf "%-10s %9.1f %9.1f %9s%s\n", name, wall, cpu, (budget > 0 ? budget : "-"), over}'
  done
}

# ---- sections --------------------------------------------------------------------------------------------------------

section_style() {
  step "style" python3 tests/style/style_test.py
  step "shellcheck" shell_scripts
  [ -n "$long" ] || return 0
  build_release && step "clang-tidy" tidy
}

shell_scripts() {
  git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck
}

tidy() {
  git ls-files -z 'src/core/*.cpp' 'src/reference/*.cpp' src/api.cpp |
    xargs -0 -P "$jobs" -n 1 clang-tidy-14 --quiet -p "$release"
}

section_unit() {
  build_release || return
  step "unit tests" ctest --test-dir "$release" --verbose --no-tests=error -j "$jobs" --exclude-regex '^cli$'
  ctest --test-dir "$release" -N -R '^cuda\.machine_code$' | grep -q 'Total Tests: 1' ||
    not_run "machine code of the CUDA kernels" "built without CUDA, or no cuobjdump and nvdisasm"
  [ -n "$long" ] || return 0
  if command -v nvcc >/dev/null; then
    step "build for every GPU" build "$PWD/build/every-gpu" msa -S . -G Ninja -DMSA_CUDA=ON -DMSA_BUILD_TOOLS=OFF &&
      step "cubins for every GPU" ctest --test-dir "$PWD/build/every-gpu" --no-tests=error -R '^cuda\.(cubins|machine_code)$'
  else
    not_run "cubins for every GPU" "no nvcc"
  fi
}

# Names of a backend's instruction sets, best first, and those that the machine lacks.
isas() { # BUILD BACKEND
  "$1/tools/msa/msa" info --json | python3 -c '
import json, sys
for backend in json.load(sys.stdin)["backends"]:
    for isa in backend.get("isas", []) if backend["name"] == sys.argv[1] else []:
        print("run" if isa["available"] else "lack", isa["name"], isa.get("reason", "").replace(" ", "_") or "-")' "$2"
}

# Of the CPU; those that the machine lacks are printed as not run. With --quick the best alone.
each_isa() { # BUILD COMMAND...: runs it with each instruction set's name as the last word
  local dir=$1 have name reason count=0
  shift
  while read -r have name reason; do
    if [ "$have" = run ]; then
      count=$((count + 1))
      [ -z "$quick" ] || [ $count = 1 ] || continue
      "$@" "$name"
    else
      not_run "$name" "${reason//_/ }"
    fi
  done < <(isas "$dir" cpu)
  [ $count -gt 0 ] || step "instruction sets of this machine" false
}

# The oracle answers a case once for all instruction sets. The reference against itself shows only what it writes and
# rejects; a few cases of each kind are enough.
section_verify() {
  build_release || return
  local wanted_isas=() which
  each_isa "$release" want_isa
  [ ${#wanted_isas[@]} -gt 0 ] || return
  which=(--every-isa)
  [ -z "$quick" ] || which=(--isa "${wanted_isas[0]}")
  step "verify cpu on ${wanted_isas[*]}" verify_in_parts --backend cpu "${which[@]}" --support tests/support/cpu.txt \
    tests/cases/all.txt tests/cases/ranks.txt
  step "verify reference" "$release/tools/msa/msa" verify --backend reference --support tests/support/reference.txt \
    tests/cases/smoke.txt tests/cases/ranks.txt
  [ -n "$long" ] || return 0
  step "verify cpu, real sizes" verify_in_parts --backend cpu --isa "${wanted_isas[0]}" \
    --support tests/support/cpu.txt tests/cases/long.txt
}

# Cases are small: processes share them better than threads share one.
verify_in_parts() { # OPTION...
  in_parts "$jobs" verify_part 1 "$release/tools/msa/msa" "$@" | sum_verified
  return "${PIPESTATUS[0]}"
}

verify_part() { # PART PARTS THREADS MSA OPTION...
  OMP_NUM_THREADS=$3 "$4" verify --part "$1/$2" "${@:5}"
}

# Several processes share the work of one: their output, one after the other; false where one of them fails.
in_parts() { # PARTS FUNCTION ARGUMENT...: calls FUNCTION PART PARTS ARGUMENT...
  local parts=$1 part dir running=() status=0
  dir=$(mktemp -d) || return 1
  for part in $(seq "$parts"); do
    "$2" "$part" "$parts" "${@:3}" >"$dir/$part.log" 2>&1 &
    running+=($!)
  done
  for part in "${running[@]}"; do wait "$part" || status=1; done
  cat "$dir"/*.log
  rm -rf "$dir"
  return $status
}

sum_verified() { # passes on what several runs of msa verify print, and one total behind it
  awk '{print}
       /^(run|passed|failed|rejected)\t/ {sum[$1] += $2}
       END {for (what in sum) print what "\t" sum[what]}'
}

section_package() {
  build_release || return
  step "package" tests/package/package_test.sh "$release"
  [ -n "$long" ] || return 0
  local minor tag
  minor=$(sed -n 's/#define MSA_VERSION_STRING "\([0-9]*\.[0-9]*\)\..*/\1/p' include/msa/version.h)
  tag=$(git describe --tags --abbrev=0 --match "v$minor.*" 2>/dev/null)
  if [ -n "$tag" ]; then
    step "ABI against $tag" compare_abi "$tag"
  else
    not_run "ABI comparison" "no release of $minor to compare with"
  fi
}

compare_abi() { # TAG: abidiff of the last release's library and this one
  local base=$PWD/build/abi-base
  rm -rf "$base" && mkdir -p "$base" && git archive "$1" | tar -x -C "$base" &&
    build "$base/build" msa -S "$base" -G Ninja -DMSA_BUILD_TOOLS=OFF -DMSA_BUILD_TESTS=OFF -DMSA_CUDA=OFF &&
    abidiff --headers-dir1 "$base/include" --headers-dir2 include "$base/build/src/libmsa.so" "$release/src/libmsa.so"
}

section_cli() {
  build_release || return
  step "command line" python3 tests/cli/cli_test.py "$release/tools/msa/msa"
}

# The Python package as users build it, in an environment of its own. Its tests have three minutes of a core, in three
# processes. An installed torch is used where there is one, as it is large.
section_python() {
  local venv=$PWD/build/venv-python
  step "python environment" python_environment "$venv" || return
  step "python wheel" cached python_wheel "$venv" || return
  begin_step "python tests, integrations (180 CPU s at most)" python_tests "$venv" tests/python/integrations
  begin_step "python tests (180 CPU s at most)" python_tests "$venv" --ignore=tests/python/integrations \
    --ignore=tests/python/distributed --ignore=tests/python/nn tests/python
  begin_step "python tests, several ranks and training (180 CPU s at most)" python_tests "$venv" tests/python/distributed \
    tests/python/nn
  begin_step "python types" python_types "$venv"
  begin_step "python wheel alone" tests/python/wheel_test.sh "$PWD"/build/wheel/*.whl
  end_steps
}

python_tests() { # VENV PYTEST-ARGUMENT...
  local venv=$1
  shift
  ulimit -t 180 # of a process; on the clock, which depends on who else runs, they may not hang
  OMP_NUM_THREADS=1 MSA_WHEEL=$(echo "$PWD"/build/wheel/*.whl) timeout 300 \
    "$venv/bin/python" -m pytest -q -rs -m "not slow" ${long:+-m ""} "$@"
}

python_environment() { # VENV
  local wanted=(numpy pytest hypothesis ml_dtypes mypy "scikit-build-core>=0.10" "torch==2.13.0" transformers kernels)
  [ -x "$1/bin/python" ] || python3 -m venv --system-site-packages "$1" || return
  # Of seven thousand modules the tests import a fifth: Python compiles these when it meets them, and the large ones now, as
  # tests have time limits.
  "$1/bin/python" -m pip install -q --no-compile "${wanted[@]}" &&
    "$1/bin/python" -c 'import hypothesis, torch._inductor.compile_fx, transformers.generation' &&
    "$1/bin/python" -m pip list
}

python_wheel() { # VENV
  rm -rf build/wheel build/wheel-build
  "$1/bin/python" -m pip wheel -q . --no-deps --no-build-isolation -w build/wheel -C build-dir=build/wheel-build \
    -C cmake.define.MSA_CUDA=OFF -C cmake.define.MSA_WERROR=ON -C cmake.define.MSA_UNITY=ON &&
    "$1/bin/python" -m pip install -q --no-deps --force-reinstall build/wheel/*.whl
}

python_types() { # VENV
  "$1/bin/python" -m mypy --strict python/msa && "$1/bin/python" tests/python/typing/typing_test.py &&
    "$1/bin/python" docs/python.py --check
}

section_asan() {
  build_fuzz || return
  # 65,537 rows of attention take minutes here; other operations have as many, and dense and select as many keys.
  local slow='*.BoundariesOfManyRows/*'
  [ -z "$long" ] || slow=
  step "unit tests with ASan and UBSan" env GTEST_FILTER="-$slow" \
    ctest --test-dir "$fuzz" --verbose --no-tests=error -j "$jobs"
}

want_isa() {
  wanted_isas+=("$1")
}

fuzz_api_on() { # FIRST CASES ISA,...: from $seed
  OMP_NUM_THREADS=1 timeout --kill-after=10 1200 "$fuzz/fuzz/fuzz_api" --first "$1" --cases "$2" --seed "$seed" --isa "$3"
}

# Another commit, other cases; the same commit, the same ones.
commit_seed() {
  local commit
  commit=$(git rev-parse --short=7 HEAD 2>/dev/null) || commit=1
  echo $((16#$commit + 1))
}

section_fuzz() {
  build_fuzz || return
  local seed i first parts=4
  seed=$(commit_seed)
  echo "seed $seed, from the commit"
  local fuzz_cases=2400 wanted_isas=() # one in six asks for a fault that its operation has no place for
  [ -z "$long" ] || fuzz_cases=50000
  each_isa "$fuzz" want_isa
  # The oracle answers a case once for all instruction sets.
  [ -z "$long" ] || parts=16
  for ((i = 0; i < parts; ++i)); do
    first=$((fuzz_cases * i / parts))
    begin_step "fuzzed API cases on ${wanted_isas[*]}, part $((i + 1)) of $parts" \
      fuzz_api_on "$first" $((fuzz_cases * (i + 1) / parts - first)) "$(IFS=,; echo "${wanted_isas[*]}")"
  done
  begin_step "fuzzed cases between instruction sets" "$fuzz/fuzz/fuzz_isa" --cases $((fuzz_cases / 16)) \
    --seed "$seed"
  libfuzzer fuzz_safetensors -runs=500000
  libfuzzer fuzz_api -runs=300 -len_control=0 -max_len=128
  end_steps
}

# The default run of a commit repeats: its seed, one thread, so many runs. The long one looks for what nobody has met.
libfuzzer() { # TARGET BUDGET...
  local target=$1 corpus=$fuzz/corpus/$1 budget=("-seed=$seed")
  shift
  budget+=("$@")
  [ -z "$long" ] || budget=(-max_total_time=900)
  [ -n "$long" ] || rm -rf "$corpus"
  mkdir -p "$corpus"
  begin_step "libFuzzer $target" env OMP_NUM_THREADS=1 "$fuzz/fuzz/$target" "${budget[@]}" -timeout=20 -rss_limit_mb=2048 \
    -print_final_stats=1 -artifact_prefix="$logs/$target-" "$corpus"
}

# The preset optimises nothing but kernels: without that the tests take as long and their build a third less.
section_tsan() {
  step "build with TSan" build "$tsan" threads_test --preset tsan -DMSA_BUILD_TOOLS=OFF || return
  # clang's OpenMP runtime is not instrumented; its tool libarcher tells TSan what the runtime orders.
  step "concurrent callers with TSan" env \
    TSAN_OPTIONS=ignore_noninstrumented_modules=1:external_symbolizer_path=$symbolizer "$tsan/tests/threads_test"
}

# Under QEMU's user emulation a thread that waits holds up the one that works: one thread.
section_arm() {
  local arm=$PWD/build/aarch64 isa emulated=(env OMP_NUM_THREADS=1 qemu-aarch64-static -L /usr/aarch64-linux-gnu)
  step "build for 64-bit ARM" build "$arm" msa_tool --preset aarch64 &&
    step "build tests for 64-bit ARM" build "$arm" cpu_test --preset aarch64 || return
  for isa in neon_bf16 neon scalar; do
    begin_step "verify cpu on $isa, emulated" "${emulated[@]}" "$arm/tools/msa/msa" verify --backend cpu --isa "$isa" \
      --support tests/support/cpu.txt tests/cases/smoke.txt
  done
  begin_step "vectors of 64-bit ARM, emulated" "${emulated[@]}" "$arm/tests/cpu_test" --gtest_filter='Isa/Vector*:Isa.*'
  end_steps
}

# The kernels of src/cuda/common and src/cuda/mma, compiled for the host, as cards that few have. Needs CUDA's headers.
section_emulated() {
  local folder=$PWD/build/emulated capability
  command -v nvcc >/dev/null || { not_run "CUDA kernels on emulated GPUs" "no CUDA toolkit"; return 0; }
  step "build with emulated GPUs" cached build "$folder" msa_emulated -S . -G Ninja -DMSA_CUDA=OFF \
    -DMSA_EMULATE_CUDA=ON || return
  step "build merges over emulated ranks" cached build "$folder" msa_emulated_peers -S . -G Ninja -DMSA_CUDA=OFF \
    -DMSA_EMULATE_CUDA=ON && step "merges over emulated ranks" "$folder/tests/emulator/msa_emulated_peers"
  for capability in 80 86 90; do
    step "verify mma on an emulated GPU of capability $((capability / 10)).$((capability % 10))" \
      verify_emulated "$capability" "$folder/tests/emulator/msa_emulated" mma tests/cases/smoke.txt tests/cases/emulated.txt
  done
  # Of sm90, which is not emulated, what its plans launch beside its kernels: rows of dq that are mended, all of them.
  grep -hE '^op=(sparse|dense)_backward' tests/cases/smoke.txt tests/cases/emulated.txt > "$logs/emulated-backward.txt"
  step "verify mended gradients of an emulated Hopper GPU" \
    verify_emulated 90 "$folder/tests/emulator/msa_emulated" sm90 "$logs/emulated-backward.txt"
}

verify_emulated() { # CAPABILITY MSA ISA FILES...
  MSA_EMULATED_CAPABILITY=$1 in_parts "$jobs" verify_part 1 "$2" --backend cuda --isa "$3" \
    --support "$(gpu_support "$3")" "${@:4}" | sum_verified
  return "${PIPESTATUS[0]}"
}

# ---- GPU -------------------------------------------------------------------------------------------------------------

gpu_support() { # ISA
  if [ "$1" = sm90 ]; then echo tests/support/cuda.txt; else echo "tests/support/cuda-$1.txt"; fi
}

# The oracle takes longer than the GPU, and most of the time of a GPU's tests is an oracle on one core: processes share the
# cases, the tests and the cores.
gpu_parts() {
  echo $((jobs > 16 ? 16 : jobs))
}

verify_cuda() { # THREADS MSA OPTION...
  in_parts "$(gpu_parts)" verify_part "$1" "$2" --backend cuda "${@:3}" |
    sum_verified
  return "${PIPESTATUS[0]}"
}

# Not for tests which measure time or hold a stream back. What a process prints is indented, so that its total counts once.
gpu_tests_in_parts() { # GPU_TEST FILTER
  in_parts "$(gpu_parts)" gpu_tests_part "$@" |
    awk '{print "  " $0}
         /^\[  PASSED  \] [0-9]+ test/ {passed += $4}
         /^\[  FAILED  \] [0-9]+ test/ {failed += $4}
         END {print passed + 0 " passed, " failed + 0 " failed"}'
  return "${PIPESTATUS[0]}"
}

gpu_tests_part() { # PART PARTS GPU_TEST FILTER
  GTEST_TOTAL_SHARDS=$2 GTEST_SHARD_INDEX=$(($1 - 1)) timeout --kill-after=10 1200 "$3" --gtest_filter="$4"
}

# The module that the GPU's Python tests import: the one of the given build, or one built for them.
gpu_module() { # BUILD
  if [ -z "$gpu_build" ]; then
    build "$1" msa_core -S . -G Ninja -DMSA_CUDA=ON -DMSA_CUDA_ARCHITECTURES=90 -DMSA_BUILD_PYTHON=ON \
      -DBUILD_SHARED_LIBS=OFF -DMSA_BUILD_TESTS=OFF -DMSA_BUILD_TOOLS=OFF -DMSA_INSTALL=OFF || return
  fi
  rm -rf build/site-gpu && mkdir -p build/site-gpu && cp -r python/msa build/site-gpu && rm -f build/site-gpu/msa/_core*.so &&
    cp "$1"/python/_core*.so build/site-gpu/msa
}

# An installed torch is used where there is one, as it must fit the driver.
gpu_python() {
  local python
  python=$(gpu_interpreter)
  if [ -n "$install" ]; then
    [ -x "$python" ] || python3 -m venv --system-site-packages build/venv-gpu || return
    "$python" -m pip install -q numpy pytest torch transformers || return
  fi
  "$python" -c 'import torch, transformers; assert torch.cuda.is_available(), "torch sees no GPU"' &&
    gpu_pytest tests/python/gpu tests/python/ops/gpu_test.py
}

gpu_interpreter() {
  if [ -n "$install" ]; then echo "$PWD/build/venv-gpu/bin/python"; else echo python3; fi
}

gpu_pytest() { # TEST...: one that is skipped has not run, and fails
  PYTHONPATH=$PWD/build/site-gpu${PYTHONPATH:+:$PYTHONPATH} timeout --kill-after=10 900 \
    "$(gpu_interpreter)" -m pytest -q -rs --no-skips "$@"
}

# The oracle answers a case once for all instruction sets.
gpu_cases() { # BUILD
  local msa=$1/tools/msa/msa tables=() isa
  for isa in "${gpu_isas[@]}"; do tables+=(--support "$isa=$(gpu_support "$isa")"); done
  # Side by side: of real sizes a few oracles are left at the end, which may have the cores then.
  begin_step "verify cuda on ${gpu_isas[*]}, real sizes" verify_cuda 8 "$msa" --every-isa "${tables[@]}" tests/cases/long.txt \
    tests/cases/cuda_long.txt
  begin_step "verify cuda on ${gpu_isas[*]}" verify_cuda 2 "$msa" --every-isa "${tables[@]}" tests/cases/all.txt tests/cases/cuda.txt
  end_steps
}

gpu_isa() { # BUILD ISA
  local msa=$1/tools/msa/msa support tool part
  support=$(gpu_support "$2")
  # These use one core each, and little of the GPU: they begin first, and what has an oracle takes the other cores.
  for tool in memcheck racecheck synccheck initcheck; do
    for part in 1 2 3 4; do
      CUDA_VISIBLE_DEVICES=$(gpus_from "$part") begin_step "compute-sanitizer $tool on $2, part $part of 4" \
        compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$msa" verify --backend cuda --isa "$2" --support "$support" --part "$part/4" tests/cases/sanitizer.txt
    done
  done
  for part in 1 2 3 4; do
    CUDA_VISIBLE_DEVICES=$(gpus_from "$part") begin_step "1000 runs give the same bits on $2, part $part of 4" \
      "$msa" verify --backend cuda --isa "$2" \
      --repeats 1000 --support "$support" --part "$part/4" tests/cases/sanitizer.txt
  done
  begin_step "verify $2, drawn with seed $(commit_seed)" verify_cuda 2 "$msa" --isa "$2" --draw 2000 \
    --seed "$(commit_seed)" --inside "$support"
  MSA_ISA=$2 begin_step "graphs on $2" gpu_tests_in_parts "$1/tests/gpu_test" 'Graph.*'
  end_steps
  MSA_ISA=$2 step "streams, bits, faults, costs on $2" "$1/tests/gpu_test" --gtest_filter='-Graph.*'
  grep '^not run\|: not run' "$logs/streams-bits-faults-costs-on-$2.log" | sed 's/^.*not run/not run/' | sort -u
}

# The visible GPUs, another one first for each NUMBER.
gpus_from() { # NUMBER
  local gpus first
  mapfile -t gpus < <(visible_gpus)
  first=$(($1 % ${#gpus[@]}))
  gpus=("${gpus[@]:first}" "${gpus[@]:0:first}")
  (IFS=, && echo "${gpus[*]}")
}

gpu_interfaces() { # BUILD
  step "calls that fail" "$1/tests/cuda_faults_test"
  step "example: the C interface" "$1/examples/attention" --device cuda
  step "example: decode in a CUDA graph" "$1/examples/engine_decode" --device cuda
  step "python module with CUDA" gpu_module "${gpu_build:-$PWD/build/cuda-python}" || return
  step "python on the GPU" gpu_python || return
  step "ranks that meet on one GPU" gpu_pytest tests/python/distributed/meeting_on_gpu_test.py
  if [ "$(visible_gpus | wc -l)" -ge 2 ]; then
    step "ranks over NCCL" gpu_pytest tests/python/distributed/gpus_test.py
  else
    not_run "ranks over NCCL" "this machine has one GPU"
  fi
}

visible_gpus() { # their numbers, one a line
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES"
  else
    nvidia-smi --query-gpu=index --format=csv,noheader
  fi
}

# One core reads the machine code of all kernels for over a minute.
gpu_library() { # BUILD
  step "machine code" tests/cuda/machine_code_test.py "$1/src/libmsa.so"
  [ -n "$gpu_build" ] || step "cubins" tests/cuda/cubins_test.py "$1/src/libmsa.so" 90
}

run_gpu_part() { # BUILD PART: the cases, an instruction set, the interfaces, or the library's file
  case $2 in
  cases) gpu_cases "$1" ;;
  interfaces) gpu_interfaces "$1" ;;
  library) gpu_library "$1" ;;
  *) gpu_isa "$1" "$2" ;;
  esac
}

# Side by side where there are several GPUs: every part sees all of them, each another one first.
run_gpu_lanes() { # BUILD PART...
  local dir=$1 part gpus=() results pids=()
  shift
  mapfile -t gpus < <(visible_gpus)
  if [ ${#gpus[@]} -lt 2 ]; then
    for part in "$@"; do run_gpu_part "$dir" "$part"; done
    return
  fi
  results=$(mktemp -d) || return
  for part in "$@"; do
    run_gpu_lane "$(IFS=,; echo "${gpus[*]}")" "$results/$part" "$dir" "$part" &
    pids+=($!)
    gpus=("${gpus[@]:1}" "${gpus[0]}")
  done
  wait_for_lanes "$results" "$@"
}

run_gpu_lane() { # GPUS RESULT BUILD PART
  export CUDA_VISIBLE_DEVICES=$1
  jobs=$((jobs > 2 ? jobs / 2 : 1)) passed=0 failed=0 failures=() took=()
  run_gpu_part "$3" "$4" >"$2.lines" 2>&1
  cat "$2.lines"
  declare -p passed failed failures took >"$2"
}

run_gpu() {
  local dir=${gpu_build:-$PWD/build/cuda} msa tool reason have name gpu_isas
  if [ -z "$gpu_build" ]; then
    step "build with CUDA" build "$dir" all -S . -G Ninja -DMSA_CUDA=ON -DMSA_CUDA_ARCHITECTURES=90 || return
  fi
  msa=$dir/tools/msa/msa
  [ -x "$msa" ] || { step "$msa is there" false; return; }
  reason=$("$msa" info --json | python3 -c '
import json, sys
cuda = [b for b in json.load(sys.stdin)["backends"] if b["name"] == "cuda"]
print("" if cuda and cuda[0]["available"] else cuda[0].get("reason", "not available") if cuda else "built without CUDA")')
  if [ -n "$reason" ]; then
    echo "no GPU to test on: $reason"
    step "a GPU" false
    return
  fi
  step "plans" "$dir/tests/cuda_test"
  # Whatever the GPU runs, each instruction set by force.
  gpu_isas=()
  while read -r have name reason; do
    if [ "$have" = run ]; then gpu_isas+=("$name"); else not_run "$name" "${reason//_/ }"; fi
  done < <(isas "$dir" cuda)
  run_gpu_lanes "$dir" cases "${gpu_isas[@]}" interfaces library
  # A row of each kind, for a look: the data and oracles of all of them take half an hour; benchmarks/hopper.py has peers.
  step "rows" "$msa" bench --backend cuda --min-time 0.2 --filter hopper.dense.8k --filter hopper.msa.8k.drift \
    --filter hopper.decode.128k.b1 --filter hopper.topk.random && cat "$logs/rows.log"
}

# ---- mutants ---------------------------------------------------------------------------------------------------------

run_mutants() {
  if [ -n "$install" ] && [ -z "$gpu" ]; then install_packages || return 2; fi
  step "mutants" mutants_of_the_tree
  cat "$logs/mutants.log"
}

mutants_of_the_tree() { # a function, and so without the time limit of commands
  local table=cpu
  [ -z "$gpu" ] || table=cuda
  python3 tests/mutants/mutants.py --table "$table" --jobs "$jobs"
}

# ----------------------------------------------------------------------------------------------------------------------

# ---- lanes -----------------------------------------------------------------------------------------------------------

# What stands on the release build and what has sanitizers share no build folder: they are two lanes, side by side. A step
# that keeps one core busy is then no idle core, and the second lane gives way to the first.
sanitized=(asan fuzz tsan)

run_sections() { # SECTION...
  local section start start_cpu shell=$BASHPID # which is another one inside $(...)
  for section in "$@"; do
    start=$EPOCHREALTIME start_cpu=$(cpu_seconds "$shell")
    echo "== $section"
    "section_$section"
    echo "== $section: $(seconds_since "$start")"
    took+=("$section $(seconds_since "$start") $start_cpu $(cpu_seconds "$shell")")
  done
}

# In a shell of its own. Its lines appear a section at a time, what it counted is left in a file for main.
run_lane() { # NICENESS RESULT SECTION...
  local niceness=$1 result=$2 section
  shift 2
  renice -n "$niceness" -p "$BASHPID" >/dev/null
  for section in "$@"; do
    run_sections "$section" >"$result.lines" 2>&1
    cat "$result.lines"
  done
  declare -p passed failed failures took >"$result"
}

run_lanes() {
  local section first=() second=() dir pids=()
  for section in "${sections[@]}"; do
    if [[ " ${sanitized[*]} " == *" $section "* ]]; then second+=("$section"); else first+=("$section"); fi
  done
  if [ ${#first[@]} -eq 0 ] || [ ${#second[@]} -eq 0 ]; then
    run_sections "${sections[@]}"
    return
  fi
  dir=$(mktemp -d) || return
  run_lane "$(nice)" "$dir/plain" "${first[@]}" &
  pids+=($!)
  run_lane $(($(nice) + 5)) "$dir/sanitized" "${second[@]}" &
  pids+=($!)
  wait_for_lanes "$dir" plain sanitized
}

# Waits for the processes in pids, and adds up what each left in a file of its name.
wait_for_lanes() { # DIR NAME...
  local dir=$1 lane sum_passed=$passed sum_failed=$failed all_failures=("${failures[@]}") all_took=("${took[@]}")
  shift
  trap 'kill "${pids[@]}" 2>/dev/null; exit 130' INT TERM
  wait "${pids[@]}"
  trap - INT TERM
  for lane in "$@"; do
    passed=0 failed=1 failures=("the lane $lane broke off") took=()
    # shellcheck disable=SC1090
    [ ! -s "$dir/$lane" ] || source <(sed 's/^declare -[^ ]* //' "$dir/$lane")
    sum_passed=$((sum_passed + passed)) sum_failed=$((sum_failed + failed))
    all_failures+=("${failures[@]}") all_took+=("${took[@]}")
  done
  passed=$sum_passed failed=$sum_failed failures=("${all_failures[@]}") took=("${all_took[@]}")
  rm -rf "$dir"
}

main() {
  local begin=$EPOCHREALTIME
  if [ -n "$mutants" ]; then
    run_mutants
  elif [ -n "$gpu" ]; then
    run_gpu
  else
    if [ -n "$install" ]; then install_packages || return 2; fi
    run_lanes
    echo
    print_budgets
  fi
  echo
  [ ${#failures[@]} -eq 0 ] || printf 'FAILED %s\n' "${failures[@]}"
  echo "total time $(seconds_since "$begin")"
  echo "$passed passed, $failed failed"
  [ "$failed" = 0 ]
}

main
