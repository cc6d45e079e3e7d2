# Finds nvcc (the system's, else that of the PyPI toolchain wheels) and CUTLASS, and compiles the *sm90.cu kernels.
#
# Sets glm5_with_cuda and glm5_cutlass_version; defines glm5_add_cuda_kernels(target).
set(glm5_with_cuda OFF)
set(glm5_cutlass_version "")

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)

# The folder of a Python package, found without importing it.
function(glm5_find_package_folder package result)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import importlib.util as u; s = u.find_spec('${package}'); print(next(iter(s.submodule_search_locations), '') if s else '')"
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(${result} "${folder}" PARENT_SCOPE)
endfunction()

if(GLM5_OPS_CUDA STREQUAL "OFF")
  return()
endif()
set(glm5_required OFF)
if(GLM5_OPS_CUDA MATCHES "^(ON|wheels)$")
  set(glm5_required ON)
endif()

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  glm5_find_package_folder(nvidia nvidia)
  set(toolkit "${nvidia}/cu13")
  if(nvidia AND EXISTS "${toolkit}/bin/nvcc")
    # The wheels have lib/ where nvcc expects lib64/, and no libcudart.so link.
    set(CMAKE_CUDA_COMPILER "${toolkit}/bin/nvcc")
    set(CUDAToolkit_ROOT "${toolkit}")
    set(CMAKE_CUDA_FLAGS_INIT "-L${toolkit}/lib")
    file(GLOB runtime "${toolkit}/lib/libcudart.so.*")
    set(CUDA_CUDART "${runtime}" CACHE FILEPATH "" FORCE)
  endif()
endif()
# 90a: wgmma, setmaxnreg and TMA multicast need the architecture-specific target. The PTX is for the emulator of the tests.
set(CMAKE_CUDA_ARCHITECTURES OFF)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(glm5_required)
    message(FATAL_ERROR
      "GLM5_OPS_CUDA=${GLM5_OPS_CUDA} needs a CUDA toolchain and none was found. Install the CUDA toolkit 12.4 or later and "
      "put nvcc on PATH, or set the environment variable GLM5_OPS_CUDA=wheels for pip, which takes the toolchain from PyPI.")
  endif()
  message(STATUS "glm5_ops: no nvcc found, building for the CPU alone")
  return()
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  message(FATAL_ERROR "glm5_ops needs nvcc 12.4 or later; found ${CMAKE_CUDA_COMPILER_VERSION} at ${CMAKE_CUDA_COMPILER}")
endif()

glm5_find_package_folder(cutlass_library cutlass)
find_path(GLM5_CUTLASS_INCLUDE cute/tensor.hpp NO_DEFAULT_PATH
          HINTS "${GLM5_OPS_CUTLASS}/include" "${GLM5_OPS_CUTLASS}" "${cutlass}/source/include")
if(NOT GLM5_CUTLASS_INCLUDE)
  if(glm5_required)
    message(FATAL_ERROR "The CUDA kernels need the CUTLASS headers. Run: pip install nvidia-cutlass==4.2.0.0 (or give "
                        "-DGLM5_OPS_CUTLASS=<checkout>)")
  endif()
  message(STATUS "glm5_ops: nvcc found but no CUTLASS headers (pip install nvidia-cutlass), building for the CPU alone")
  return()
endif()
file(STRINGS "${GLM5_CUTLASS_INCLUDE}/cutlass/version.h" version_lines REGEX "#define CUTLASS_(MAJOR|MINOR|PATCH)")
string(REGEX MATCHALL "[0-9]+" version_numbers "${version_lines}")
list(JOIN version_numbers "." glm5_cutlass_version)
if(glm5_cutlass_version VERSION_LESS 3.9)
  message(FATAL_ERROR "glm5_ops needs CUTLASS 3.9 or later; found ${glm5_cutlass_version} at ${GLM5_CUTLASS_INCLUDE}")
endif()
set(glm5_with_cuda ON)

function(glm5_add_cuda_kernels target)
  file(GLOB kernels CONFIGURE_DEPENDS csrc/ops/*/*sm90.cu)
  find_package(CUDAToolkit REQUIRED)
  add_library(glm5_cuda OBJECT ${kernels})
  target_include_directories(glm5_cuda PRIVATE csrc)
  target_include_directories(glm5_cuda SYSTEM PRIVATE "${GLM5_CUTLASS_INCLUDE}")
  target_compile_features(glm5_cuda PRIVATE cuda_std_20)
  target_compile_options(glm5_cuda PRIVATE -O3 -lineinfo --expt-relaxed-constexpr
                         "SHELL:-gencode arch=compute_90a,code=[sm_90a,compute_90a]" "SHELL:-Xptxas -v")
  target_link_libraries(glm5_cuda PRIVATE CUDA::cudart_static)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:glm5_cuda>)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
endfunction()
