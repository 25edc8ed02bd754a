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

# Adds the CUDA backend's sources to an object library. Spills and serialised wgmma cost a large part of the speed and
# ptxas only warns of them, so spill warnings stay on in every build (tests/cuda/machine_code_test.py reads the code).
# Compressed: three quarters of an object are line tables, which stay for profilers.
function(msa_cuda_backend target)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cuda/*.cpp ${PROJECT_SOURCE_DIR}/src/cuda/*.cu)
  target_sources(${target} PRIVATE ${sources})
  target_compile_definitions(${target} PRIVATE MSA_WITH_CUDA=1)
  target_include_directories(${target} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-warn-spills -Xfatbin=-compress-all
                                           $<$<NOT:$<BOOL:${MSA_BUILD_PYTHON}>>:-lineinfo>>)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES 90a-real CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
                                             CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
endfunction()
message(STATUS "CUDA backend: ${MSA_WITH_CUDA}")
