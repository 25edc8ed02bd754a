# SPDX-License-Identifier: MIT
# Toolchain: 64-bit ARM from another Linux machine, run under QEMU's user emulation.
#   cmake --preset aarch64 && cmake --build --preset aarch64
# Debian: g++-aarch64-linux-gnu qemu-user-static, and libgtest-dev:arm64 libfmt-dev:arm64 (dpkg --add-architecture arm64).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu)
