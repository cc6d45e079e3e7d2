// _native_emulated: the ops of csrc/module.cpp, whose CUDA launchers are linked against the emulator.
#include "core/bind.h"

namespace nb = nanobind;

namespace glm5 {

void bind_dequantize_fp8(nb::module_&);
void bind_fp8_gemm(nb::module_&);
void bind_gemm(nb::module_&);
void bind_grouped_gemm(nb::module_&);
void bind_indexer_cache_append(nb::module_&);
void bind_indexer_logits(nb::module_&);
void bind_indexer_logits_at(nb::module_&);
void bind_indexer_topk(nb::module_&);
void bind_mla_cache_append(nb::module_&);
void bind_mla_cache_gather(nb::module_&);
void bind_moe_combine(nb::module_&);
void bind_moe_dispatch(nb::module_&);
void bind_moe_route(nb::module_&);
void bind_quantize_fp8(nb::module_&);
void bind_sparse_mla_attention(nb::module_&);
void bind_swiglu(nb::module_&);
void bind_topk_select(nb::module_&);

namespace {

// The library's own exception, so that a test sees one class wherever an op runs.
void raise_error(const std::exception_ptr& thrown, void* error_class) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    PyErr_SetString(static_cast<PyObject*>(error_class), error.what());
  }
}

}  // namespace

NB_MODULE(_native_emulated, m) {
  nb::object error = nb::module_::import_("glm5_ops._native").attr("Error");
  m.attr("Error") = error;
  nb::register_exception_translator(raise_error, error.release().ptr());
  bind_dequantize_fp8(m);
  bind_fp8_gemm(m);
  bind_gemm(m);
  bind_grouped_gemm(m);
  bind_indexer_cache_append(m);
  bind_indexer_logits(m);
  bind_indexer_logits_at(m);
  bind_indexer_topk(m);
  bind_mla_cache_append(m);
  bind_mla_cache_gather(m);
  bind_moe_combine(m);
  bind_moe_dispatch(m);
  bind_moe_route(m);
  bind_quantize_fp8(m);
  bind_sparse_mla_attention(m);
  bind_swiglu(m);
  bind_topk_select(m);
}

}  // namespace glm5
