#include "core/bind.h"

namespace glm5 {

bool runs_on_cuda(int dlpack_device_type) {
  constexpr int kDlCuda = 2;
  return dlpack_device_type == kDlCuda;
}

}  // namespace glm5
