// The extension module: one line per op, and what doctor and the tests ask of the build.
#include "core/bind.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

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

void bind_build(nb::module_& m) {
  m.attr("with_cuda") = bool{GLM5_WITH_CUDA};
  m.attr("cuda_version") = GLM5_CUDA_VERSION;
  m.attr("cutlass_version") = GLM5_CUTLASS_VERSION;
  m.attr("compiler") = GLM5_COMPILER;
  m.attr("build_type") = GLM5_BUILD_TYPE;
  m.attr("kernel_files") = nb::str(GLM5_KERNEL_FILES).attr("split")();
}

void bind_cpu(nb::module_& m) {
  m.def("detected_isa", [] { return static_cast<int>(cpu::detected_isa()); });
  m.def("current_isa", [] { return static_cast<int>(cpu::current_isa()); });
  m.def("limit_isa", [](int isa) { cpu::limit_isa(static_cast<cpu::Isa>(isa)); }, nb::arg("isa"));
  m.def("isa_names", [] {
    nb::list names;
    for (auto isa : {cpu::Isa::generic, cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::amx}) names.append(cpu::name(isa));
    return names;
  });
  m.def("thread_count", &cpu::thread_count);
  // For tests: kernels above what this processor has, executed by an interpreter. Address 0 closes the door.
  m.def(
      "interpret_isa",
      [](int isa, u64 interpreter) {
        cpu::interpret_isa(static_cast<cpu::Isa>(isa), reinterpret_cast<cpu::Interpreter>(interpreter));
      },
      nb::arg("isa"), nb::arg("interpreter"));
}

NB_MODULE(_native, m) {
  nb::exception<Error>(m, "Error", PyExc_RuntimeError);
  bind_build(m);
  bind_cpu(m);
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
