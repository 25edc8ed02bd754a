# SPDX-License-Identifier: MIT
# `cmake --install`: headers, library, CMake package, msa.pc and the tool. The tree may be moved after installation.
include(CMakePackageConfigHelpers)

install(TARGETS msa EXPORT msaTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT msa NAMELINK_COMPONENT msa-dev
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT msa-dev)
install(DIRECTORY include/msa DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT msa-dev FILES_MATCHING PATTERN "*.h")

if(TARGET msa_tool)
  install(TARGETS msa_tool RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT msa-tool)
endif()

get_target_property(msa_type msa TYPE)
set(MSA_STATIC OFF)
set(MSA_STATIC_CUDA OFF)
if(msa_type STREQUAL STATIC_LIBRARY)
  set(MSA_STATIC ON)
  if(MSA_WITH_CUDA)
    set(MSA_STATIC_CUDA ON)
  endif()
endif()

set(msa_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/msa)
install(EXPORT msaTargets NAMESPACE msa:: DESTINATION ${msa_package_dir} COMPONENT msa-dev)
configure_package_config_file(cmake/msaConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/msaConfig.cmake
                              INSTALL_DESTINATION ${msa_package_dir} NO_SET_AND_CHECK_MACRO)
# Minor versions of 0.x may break the interface.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/msaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/msaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/msaConfigVersion.cmake
        DESTINATION ${msa_package_dir} COMPONENT msa-dev)

# msa.pc finds its prefix from where it lies, unless the folders were given as absolute paths.
file(RELATIVE_PATH MSA_PC_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" MSA_PC_PREFIX "${MSA_PC_PREFIX}")
foreach(dir INCLUDEDIR LIBDIR)
  if(IS_ABSOLUTE ${CMAKE_INSTALL_${dir}})
    set(MSA_PC_${dir} ${CMAKE_INSTALL_${dir}})
  else()
    set(MSA_PC_${dir} "\${prefix}/${CMAKE_INSTALL_${dir}}")
  endif()
endforeach()
# A static library leaves the C++ run-time library to the link, and a C compiler does not bring it along.
set(MSA_PC_LIBS_PRIVATE "${OpenMP_CXX_FLAGS}")
foreach(lib stdc++ c++ m)
  if(lib IN_LIST CMAKE_CXX_IMPLICIT_LINK_LIBRARIES)
    string(APPEND MSA_PC_LIBS_PRIVATE " -l${lib}")
  endif()
endforeach()
if(MSA_WITH_CUDA)
  string(APPEND MSA_PC_LIBS_PRIVATE " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -ldl -lpthread")
endif()
configure_file(cmake/msa.pc.in ${CMAKE_CURRENT_BINARY_DIR}/msa.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/msa.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT msa-dev)

install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT msa)
