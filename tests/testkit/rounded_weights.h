// SPDX-License-Identifier: MIT
// An honest program of 16-bit products, which the comparison must not call wrong.
#pragma once

#include "testkit/generate.h"

namespace msa::testkit {

/// Dense attention of a case's one request over one key head: each weight, times its value's scale
/// where there is one, is rounded once to the queries' type, against a maximum that lies up to 2
/// above the row's. Not watched by sanitizers.
void attend_with_rounded_weights(const Data& data);

}  // namespace msa::testkit
