# SPDX-License-Identifier: MIT
# Tells one source file the commit and build type it is built from: macros MSA_COMMIT and MSA_BUILD_TYPE. Asked of git at
# each build, so that a commit between two builds is not missed; the file is compiled again only when the answer changed.
# -DMSA_COMMIT=... at configuration overrides it, for trees that travel without their repository.
if(CMAKE_SCRIPT_MODE_FILE)
  set(commit "${GIVEN}")
  if(NOT commit)
    execute_process(COMMAND git describe --always --abbrev=40 --exclude=* --dirty WORKING_DIRECTORY ${SOURCE}
                    OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  if(NOT commit)
    set(commit unknown)
  endif()
  file(CONFIGURE OUTPUT ${HEADER} CONTENT "#define MSA_COMMIT \"${commit}\"\n#define MSA_BUILD_TYPE \"${BUILD_TYPE}\"\n")
  return()
endif()

set(MSA_COMMIT "" CACHE STRING "Commit that the build reports; empty: asked of git")

function(msa_commit source)
  set(header ${CMAKE_CURRENT_BINARY_DIR}/msa_commit.h)
  add_custom_target(msa_commit BYPRODUCTS ${header} COMMENT "" VERBATIM
                    COMMAND ${CMAKE_COMMAND} -DSOURCE=${PROJECT_SOURCE_DIR} -DHEADER=${header} -DGIVEN=${MSA_COMMIT}
                            -DBUILD_TYPE=$<CONFIG> -P ${PROJECT_SOURCE_DIR}/cmake/Commit.cmake)
  set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS "-include;${header}")
  set_source_files_properties(${source} PROPERTIES OBJECT_DEPENDS ${header})
endfunction()
