// The container that nvcc puts into an object: finds the PTX of compute_90a in it and unpacks it.
#pragma once

#include <string>

#include "core/types.h"

namespace glm5::emulator {

// `wrapper` is what __cudaRegisterFatBinary gets. Throws Refusal: no PTX, or another architecture's.
std::string ptx_of_fatbin(const void* wrapper);

}  // namespace glm5::emulator
