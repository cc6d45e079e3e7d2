// The functions of libcuda that programs ask the runtime for.
#pragma once

namespace glm5::emulator {

void* driver_function(const char* name);  // null where the emulator has none

}  // namespace glm5::emulator
