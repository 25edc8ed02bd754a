// SPDX-License-Identifier: MIT
// Everything that users of the library include.
#pragma once

#include "msa/attention.h"
#include "msa/error.h"
#include "msa/info.h"
#include "msa/operands.h"
#include "msa/problem.h"
#include "msa/tensor.h"
#include "msa/version.h"
