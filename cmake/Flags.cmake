# SPDX-License-Identifier: MIT
# Compiler settings shared by every target of this project: msa_flags(target). Nothing global is changed.
include(CheckLinkerFlag)
check_linker_flag(CXX "-Wl,-z,relro,-z,now" MSA_LINKER_HAS_RELRO)
check_linker_flag(CXX "-Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/msa.map" MSA_LINKER_HAS_VERSION_SCRIPT)

function(msa_flags target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden
                                             VISIBILITY_INLINES_HIDDEN ON POSITION_INDEPENDENT_CODE ON)
  # -ffp-contract=fast fuses a * b + c; NaN, infinities and signed zeros keep their meaning (no -ffast-math anywhere).
  set(warn -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wno-psabi)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${warn} -fno-math-errno -ffp-contract=fast>
                                           $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-O3>)
  if(MSA_WERROR)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
  endif()
  if(MSA_HARDENING)
    msa_harden(${target})
  endif()
  if(MSA_SANITIZE)
    # The assertions of libstdc++ abort, which is wanted here and never in a build that users get.
    target_compile_definitions(${target} PRIVATE _GLIBCXX_ASSERTIONS)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${MSA_SANITIZE}
                                             -fno-omit-frame-pointer -fno-sanitize-recover=all>)
    target_link_options(${target} PRIVATE -fsanitize=${MSA_SANITIZE})
  endif()
endfunction()

# What only works out expected values: under ASan and UBSan these files would take most of the time of all tests, to watch
# the tests' own arithmetic. They are optimised and not watched. Call it where the files' target is made.
function(msa_unwatched)
  if(MSA_SANITIZE MATCHES "address")
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-O3;-fno-sanitize=all")
  endif()
endfunction()

# Programs that call the library and compute little themselves: optimising them is half of their build time, with
# sanitizers two thirds, and they run no faster for it. LEVEL is that of builds without sanitizers.
function(msa_light_flags target level)
  if(MSA_SANITIZE)
    set(level -O0)
  endif()
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${level}>)
endfunction()

# Kernels. The scalar ones, for processors without AVX2, are twice as large with -O3: 90 KB of a wheel. The emulated tiles,
# plain loops too and for tests alone, take GCC 26 seconds with -O3 and 12 with -O2.
# With sanitizers half of the kernels' build time is optimisation. Where -g1 writes no variables, clang 14 need not follow
# them, for which it takes a sixth of the time of its larger kernels, nor ask what each checked loop leaves in its counters,
# which takes as much of the scalar ones. Vectors are written out: compilers need make them of loops over lanes alone, those of
# a length that they know, and what GCC makes of others is 50 KB of a wheel.
function(msa_kernels)
  set(plain ${ARGN})
  list(FILTER plain INCLUDE REGEX "/(scalar|amx_emulated)\\.cpp$")
  if(MSA_SANITIZE)
    set(options -O1)
    if(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND CMAKE_CXX_COMPILER_VERSION MATCHES "^14\\.")
      list(APPEND options -mllvm -experimental-debug-variable-locations=false -mllvm -replexitval=never)
    endif()
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${options}" COMPILE_DEFINITIONS MSA_SANITIZED)
  else()
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "-fvect-cost-model=very-cheap")
    endif()
    set_source_files_properties(${plain} PROPERTIES COMPILE_OPTIONS "$<$<CONFIG:Release>:-O2>")
  endif()
endfunction()

# What checks, describes and hands out calls runs once a plan or a call: with -O3 it is
# half as large again, 60 KB of a wheel. The reference is what tests wait for.
function(msa_calls)
  if(NOT MSA_SANITIZE)
    # Sections, as a wheel leaves out the entry points that Python does not call.
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "$<$<CONFIG:Release>:-O2;-ffunction-sections>")
  endif()
endfunction()

# What plans and describes calls: where size counts for more, 12 KB of a wheel.
function(msa_plans)
  if(NOT MSA_SANITIZE)
    set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "$<$<CONFIG:Release>:-Os;-ffunction-sections>")
  endif()
endfunction()

# Most of the time of a small file is its headers: with MSA_UNITY up to eight files of a target are compiled as one. Files
# with options of their own stay alone. The library that users get is always compiled file by file.
function(msa_unity target)
  if(MSA_UNITY)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE BATCH UNITY_BUILD_BATCH_SIZE 8)
  endif()
endfunction()

# _FORTIFY_SOURCE needs an optimised build and hides memory functions from the sanitizers.
function(msa_harden target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fstack-protector-strong>)
  if(NOT MSA_SANITIZE)
    set(optimised $<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release,RelWithDebInfo,MinSizeRel>>)
    target_compile_options(${target} PRIVATE $<${optimised}:-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2>)
  endif()
  if(MSA_LINKER_HAS_RELRO)
    target_link_options(${target} PRIVATE -Wl,-z,relro,-z,now)
  endif()
endfunction()
