// The emulated module's answer to csrc/core/runs_on_cuda.cpp: every tensor goes to the CUDA launcher.
#include "core/bind.h"

namespace glm5 {

bool runs_on_cuda(int) { return true; }

}  // namespace glm5
