// SPDX-License-Identifier: MIT
// Arguments that no call may accept: one tensor of a good call, or the workspace, made illegal.
#pragma once

#include <string>

#include "testkit/draw.h"
#include "testkit/operands.h"

namespace msa::fuzz {

using testkit::Choices;

/// Makes one argument illegal and says how; empty where this choice found nothing to spoil.
std::string spoil(Choices& choices, testkit::Operands& operands, Workspace& workspace);

}  // namespace msa::fuzz
