# SPDX-License-Identifier: MIT
# Finds nvcc where MSA_CUDA allows it; sets MSA_WITH_CUDA. The CUDA runtime is linked statically and opens the driver on
# first use, so that the library loads where there is neither GPU nor driver. Sanitizer builds leave it out.
set(MSA_WITH_CUDA OFF)
if(MSA_CUDA STREQUAL "ON" OR (MSA_CUDA STREQUAL "AUTO" AND NOT MSA_SANITIZE))
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 90a-real) # wgmma and setmaxnreg exist in sm_90a code only
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    if(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 13.0)
      set(MSA_WITH_CUDA ON)
    elseif(MSA_CUDA STREQUAL "ON")
      message(FATAL_ERROR "MSA_CUDA=ON needs CUDA 13.0 or newer, found ${CUDAToolkit_VERSION}")
    endif()
  elseif(MSA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "MSA_CUDA=ON, but no nvcc was found; set CMAKE_CUDA_COMPILER")
  endif()
endif()

# The CUDA backend's sources as an object library of their own: the rest of the library is compiled without a word of CUDA,
# alike in every build. Spills and serialised wgmma cost a large part of the speed and ptxas only warns of them, so spill
# warnings stay on in every build (tests/cuda/machine_code_test.py reads the code).
# Line tables, three quarters of a compressed object, are for profilers: Release goes without, as it is stripped of symbols.
function(msa_cuda_backend target)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cuda/*.cpp ${PROJECT_SOURCE_DIR}/src/cuda/*.cu)
  set(instances ${sources})
  list(FILTER sources EXCLUDE REGEX "/instances/")
  list(FILTER instances INCLUDE REGEX "/instances/")
  msa_cuda_groups(groups ${instances})
  add_library(${target} OBJECT ${sources} ${groups})
  msa_flags(${target})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
  target_include_directories(${target} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-warn-spills --compress-mode=size
                                           $<$<NOT:$<CONFIG:Release,MinSizeRel>>:-lineinfo>>)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES 90a-real CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
                                             CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
endfunction()

# Instances of kernels, four of one folder to a file, twelve with MSA_UNITY: of the four to five CPU seconds that one takes
# alone, three and a half are headers. The machine code of each is the same either way, which is not so for other kernels
# of several files.
function(msa_cuda_groups result)
  set(size 4)
  if(MSA_UNITY)
    set(size 12)
  endif()
  set(groups)
  set(folder)
  foreach(source IN LISTS ARGN)
    cmake_path(GET source PARENT_PATH parent)
    if(NOT parent STREQUAL folder OR room EQUAL 0)
      cmake_path(RELATIVE_PATH source BASE_DIRECTORY ${PROJECT_SOURCE_DIR}/src/cuda OUTPUT_VARIABLE name)
      set(group ${CMAKE_CURRENT_BINARY_DIR}/cuda_groups/${name})
      list(APPEND groups ${group})
      set(${group}_text)
      set(folder ${parent})
      set(room ${size})
    endif()
    string(APPEND ${group}_text "#include \"${source}\"\n")
    math(EXPR room "${room} - 1")
  endforeach()
  foreach(group IN LISTS groups)
    file(CONFIGURE OUTPUT ${group} CONTENT "${${group}_text}" @ONLY)
  endforeach()
  set(${result} ${groups} PARENT_SCOPE)
endfunction()
message(STATUS "CUDA backend: ${MSA_WITH_CUDA}")
