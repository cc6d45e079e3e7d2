// The arithmetic of cp.reduce.async.bulk, element by element.
#pragma once

#include "program.h"
#include "tensor_map.h"

namespace glm5::emulator {

enum class ReduceOperation : u8 { add, min, max, and_, or_, xor_ };
using Reduce = void (*)(u8* to, const u8* from, u32 bytes);

// Null where the instruction does not exist. element: a TensorElement.
Reduce reduction_of(ReduceOperation operation, u8 element);
u8 tensor_element_of(Type type);

}  // namespace glm5::emulator
