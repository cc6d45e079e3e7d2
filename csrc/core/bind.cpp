#include "core/bind.h"

#include <cstring>

namespace nb = nanobind;

namespace glm5::bind {
namespace {

// The part of DLPack 1.3's C interface that is read here (dmlc/dlpack, include/dlpack/dlpack.h), field by field.
struct DlTensor {
  void* data;
  i32 device_type, device_id;
  i32 rank;
  u8 code, bits;
  u16 lanes;
  const i64* shape;
  const i64* strides;
  u64 byte_offset;
};

struct DlExchangeApi {
  u32 major, minor;
  const void* previous;
  const void* allocator;
  const void* managed_from_object;
  const void* managed_to_object;
  int (*tensor_from_object)(void* object, DlTensor* out);
  const void* current_work_stream;
};

// The API belongs to the type of the tensor; the last type seen is remembered.
const DlExchangeApi* exchange_api(PyTypeObject* type) {
  static thread_local PyTypeObject* known_type = nullptr;
  static thread_local const DlExchangeApi* known_api = nullptr;
  if (type == known_type) return known_api;
  const DlExchangeApi* api = nullptr;
  if (PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__")) {
    api = static_cast<const DlExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
  }
  PyErr_Clear();
  if (api && (api->major != 1 || !api->tensor_from_object)) api = nullptr;
  Py_INCREF(type);  // kept alive, so that its address is not another type's later
  known_type = type;
  known_api = api;
  return api;
}

bool read_exchange(const DlExchangeApi& api, PyObject* object, View& view) {
  DlTensor tensor;
  if (api.tensor_from_object(object, &tensor) != 0) return false;
  if (tensor.rank > kMaxRank || tensor.lanes != 1) return false;
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.device_type = tensor.device_type;
  view.code = tensor.code;
  view.bits = tensor.bits;
  view.rank = tensor.rank;
  i64 dense = 1;
  for (int d = tensor.rank - 1; d >= 0; --d) {
    view.shape[d] = tensor.shape[d];
    view.stride[d] = tensor.strides ? tensor.strides[d] : dense;
    dense *= view.shape[d];
  }
  return true;
}

struct NamedType {
  const char* name;
  int code, bits;
};
constexpr NamedType kTypes[] = {
    {"torch.float32", kFloat, 32}, {"torch.bfloat16", kBfloat, 16}, {"torch.float8_e4m3fn", kE4m3fn, 8},
    {"torch.float16", kFloat, 16}, {"torch.int32", kInt, 32},       {"torch.uint8", kUInt, 8},
    {"torch.int64", kInt, 64},     {"torch.float64", kFloat, 64},   {"torch.int8", kInt, 8},
    {"torch.int16", kInt, 16},
};

bool read_attributes(nb::handle tensor, View& view) {
  const nb::object dtype_object = tensor.attr("dtype");
  const auto dtype = nb::cast<std::string>(nb::str(nb::handle(dtype_object)));
  const NamedType* known = nullptr;
  for (const NamedType& type : kTypes)
    if (dtype == type.name) known = &type;
  if (!known) return false;
  view.code = known->code;
  view.bits = known->bits;
  const nb::object shape = tensor.attr("shape"), stride = tensor.attr("stride")();
  view.rank = static_cast<int>(nb::len(shape));
  if (view.rank > kMaxRank) return false;
  for (int d = 0; d < view.rank; ++d) {
    view.shape[d] = nb::cast<i64>(shape[d]);
    view.stride[d] = nb::cast<i64>(stride[d]);
  }
  view.data = reinterpret_cast<void*>(nb::cast<u64>(tensor.attr("data_ptr")()));
  constexpr int kDlCpu = 1, kDlCuda = 2;
  view.device_type = nb::cast<bool>(tensor.attr("is_cuda")) ? kDlCuda : kDlCpu;
  return true;
}

}  // namespace

bool read_view(PyObject* tensor, View& view) noexcept {
  try {
    const DlExchangeApi* api = exchange_api(Py_TYPE(tensor));
    if (api && read_exchange(*api, tensor, view)) return true;
    PyErr_Clear();
    return read_attributes(tensor, view);
  } catch (...) {  // not a tensor: nanobind reports the argument's type
    PyErr_Clear();
    return false;
  }
}

}  // namespace glm5::bind
